import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    replaces = [
        ('controlplane', '0001_initial'),
        ('controlplane', '0002_plain_english'),
        ('controlplane', '0003_api_tokens'),
        ('controlplane', '0004_names'),
    ]

    dependencies = [
        ('axes', '0010_accessattemptexpiration'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Host',
            fields=[
                ('name', models.CharField(max_length=100, primary_key=True, serialize=False)),
                ('started_at', models.DateTimeField(blank=True, null=True)),
                ('ticked_at', models.DateTimeField(blank=True, null=True)),
                ('worked_at', models.DateTimeField(blank=True, help_text='When a task of its queue last ran.', null=True)),
                ('restarts', models.PositiveIntegerField(default=0, help_text='How often its queue stalled and was restarted.')),
            ],
            options={
                'verbose_name': 'machine',
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Installation',
            fields=[
                ('id', models.CharField(max_length=32, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name='Lease',
            fields=[
                ('name', models.CharField(max_length=200, primary_key=True, serialize=False)),
                ('owner', models.CharField(blank=True, max_length=200)),
                ('expires_at', models.DateTimeField()),
                ('fence', models.PositiveBigIntegerField(default=0, help_text='Grows with each claim, so that a late owner is detected.')),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='RecurringTask',
            fields=[
                ('name', models.CharField(max_length=100, primary_key=True, serialize=False)),
                ('every_seconds', models.FloatField()),
                ('enabled', models.BooleanField(default=True)),
                ('per_host', models.BooleanField(default=False)),
                ('due_at', models.DateTimeField(db_index=True)),
                ('last_queued_at', models.DateTimeField(blank=True, null=True)),
                ('last_started_at', models.DateTimeField(blank=True, null=True)),
                ('last_finished_at', models.DateTimeField(blank=True, null=True)),
                ('last_seconds', models.FloatField(blank=True, null=True)),
                ('last_result', models.CharField(blank=True, max_length=500)),
                ('last_error', models.TextField(blank=True)),
                ('last_error_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='FailedLogin',
            fields=[
            ],
            options={
                'verbose_name': 'failed login',
                'ordering': ['-attempt_time'],
                'proxy': True,
                'indexes': [],
                'constraints': [],
            },
            bases=('axes.accessattempt',),
        ),
        migrations.CreateModel(
            name='ApiToken',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(help_text='What it is for.', max_length=100)),
                ('key', models.CharField(help_text='The part of the token by which it is found; not secret.', max_length=12, unique=True)),
                ('digest', models.CharField(help_text='SHA-256 of the secret part, which is stored nowhere.', max_length=64)),
                ('scopes', models.JSONField(default=list)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('expires_at', models.DateTimeField()),
                ('revoked_at', models.DateTimeField(blank=True, null=True)),
                ('last_used_at', models.DateTimeField(blank=True, null=True)),
                ('minute_at', models.DateTimeField(blank=True, help_text='When the minute began in which requests are counted.', null=True)),
                ('requests', models.PositiveIntegerField(default=0, help_text='Requests in that minute.')),
                ('user', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='api_tokens', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'verbose_name': 'API token',
                'ordering': ['-id'],
            },
        ),
    ]
