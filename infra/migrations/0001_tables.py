import controlplane.secrets
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    replaces = [
        ('infra', '0001_initial'),
        ('infra', '0002_running'),
        ('infra', '0003_left'),
        ('infra', '0004_deployer'),
        ('infra', '0005_upgrade_states'),
        ('infra', '0006_plain_english'),
        ('infra', '0007_alert_page'),
        ('infra', '0008_names'),
    ]

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='InfraFile',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path', models.CharField(help_text='Where the file is; new pins are written there.', max_length=1000)),
                ('stores', models.JSONField(blank=True, default=dict)),
                ('git', models.JSONField(blank=True, default=dict)),
                ('host', models.CharField(blank=True, help_text='The host the apps belong to: where the file was applied.', max_length=100)),
                ('applied_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'verbose_name': 'infra.yml',
                'verbose_name_plural': 'infra.yml',
            },
        ),
        migrations.CreateModel(
            name='InfraApp',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=63, unique=True)),
                ('declared', models.BooleanField(default=True, help_text='No: no longer in infra.yml; cc-ci leaves it alone.')),
                ('position', models.PositiveIntegerField(default=0, help_text='Position in infra.yml.')),
                ('recipe', models.CharField(max_length=100)),
                ('source', models.CharField(help_text="The recipe's git repository.", max_length=500)),
                ('credential', models.CharField(blank=True, help_text='Where its token is: env:NAME or file:path.', max_length=500)),
                ('domain', models.CharField(max_length=253)),
                ('server', models.CharField(default='default', max_length=100)),
                ('stack', models.CharField(max_length=63)),
                ('deployer', models.CharField(choices=[('swarm', 'swarm')], default='swarm', max_length=10)),
                ('owner', models.CharField(choices=[('reconciled', 'reconciled by cc-ci'), ('maintainers', 'managed by its maintainers')], default='maintainers', max_length=12)),
                ('state', models.CharField(choices=[('settled', 'settled'), ('upgrading', 'upgrading'), ('contested', 'drifted')], db_index=True, default='settled', max_length=10)),
                ('pinned_version', models.CharField(blank=True, max_length=200)),
                ('running_version', models.CharField(blank=True, help_text='From the version label, when last read.', max_length=200)),
                ('fingerprint', models.CharField(blank=True, help_text='Of what ran when cc-ci last inspected or changed it.', max_length=200)),
                ('parts', models.JSONField(blank=True, default=dict, help_text='The same for each service.')),
                ('left', models.JSONField(blank=True, default=dict, help_text='What cc-ci had deployed, in full: specs, images, networks.')),
                ('contested', models.JSONField(blank=True, default=dict, help_text='Changes made outside cc-ci, as found.')),
                ('fence', models.PositiveBigIntegerField(default=0, help_text='Grows with each transition, so that a late worker changes nothing.')),
                ('after', models.JSONField(blank=True, default=list, help_text='Names of apps that come before it.')),
                ('env', models.JSONField(blank=True, default=dict)),
                ('secrets', models.JSONField(blank=True, default=dict, help_text='References (env:NAME, file:path), never values.')),
                ('policy', models.JSONField(blank=True, default=dict)),
                ('window', models.CharField(blank=True, max_length=100)),
                ('health', models.JSONField(blank=True, default=list)),
                ('snapshots', models.JSONField(blank=True, default=dict)),
                ('discovered_at', models.DateTimeField(blank=True, help_text='When its releases were last read.', null=True)),
                ('discovery_error', models.TextField(blank=True)),
                ('unreadable', models.JSONField(blank=True, default=list, help_text='Tags and notes that cannot be used, each with the reason.')),
            ],
            options={
                'verbose_name': 'app',
                'ordering': ['position', 'name'],
                'constraints': [models.UniqueConstraint(fields=('server', 'stack'), name='one_app_per_stack')],
            },
        ),
        migrations.CreateModel(
            name='AlertSent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('key', models.CharField(max_length=300, unique=True)),
                ('kind', models.CharField(max_length=30)),
                ('text', models.TextField()),
                ('page', models.CharField(blank=True, help_text='URL of a page of ours, if it is not about an app.', max_length=300)),
                ('at', models.DateTimeField()),
                ('delivered', models.BooleanField(default=False, help_text='Delivered to every configured address.')),
                ('problem', models.TextField(blank=True)),
                ('app', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='alerts', to='infra.infraapp')),
            ],
            options={
                'verbose_name': 'alert',
                'ordering': ['-id'],
            },
        ),
        migrations.CreateModel(
            name='Snapshot',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('version', models.CharField(max_length=200)),
                ('store', models.CharField(max_length=63)),
                ('location', models.CharField(help_text="Its folder in the store, or restic's id of it.", max_length=1000)),
                ('proved', models.BooleanField(default=False, help_text='It was read back, and paths, modes, owners and contents agreed.')),
                ('bytes', models.PositiveBigIntegerField(default=0)),
                ('manifest', models.CharField(blank=True, help_text='SHA-256 of its list of files.', max_length=64)),
                ('taken_at', models.DateTimeField()),
                ('kept_because', models.CharField(blank=True, help_text='Why it is kept beyond the policy.', max_length=300)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='taken', to='infra.infraapp')),
            ],
            options={
                'ordering': ['-taken_at'],
            },
        ),
        migrations.CreateModel(
            name='Upgrade',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('from_version', models.CharField(blank=True, max_length=200)),
                ('to_version', models.CharField(max_length=200)),
                ('state', models.CharField(choices=[('planned', 'planned'), ('approved', 'approved'), ('snapshotting', 'snapshotting'), ('deploying', 'deploying'), ('verifying', 'verifying'), ('soaking', 'soaking'), ('succeeded', 'succeeded'), ('failed', 'failed before anything was changed'), ('rolling_back', 'rolling back'), ('rolled_back', 'rolled back'), ('rollback_failed', 'rollback failed')], db_index=True, default='planned', max_length=16)),
                ('trigger', models.CharField(help_text='Who or what requested it: nightly, or a person and how.', max_length=300)),
                ('reason', models.TextField(blank=True, help_text='One sentence: what failed or why it waits, and what to do.')),
                ('fence', models.PositiveBigIntegerField(default=0, help_text='Of the lease that holds it; an older worker changes nothing.')),
                ('specs', models.JSONField(blank=True, default=dict, help_text='All service specs before the upgrade.')),
                ('digests', models.JSONField(blank=True, default=dict, help_text='The images that ran, by service.')),
                ('baseline', models.JSONField(blank=True, default=dict, help_text='Probe results before the upgrade.')),
                ('asked', models.JSONField(blank=True, default=dict, help_text='The request, apart from the version.')),
                ('facts', models.JSONField(blank=True, default=dict, help_text='Facts that later steps need.')),
                ('step', models.JSONField(blank=True, default=dict, help_text='What the current step has announced or done.')),
                ('ran_new', models.BooleanField(default=False, help_text='The new version may have written to the data.')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('started_at', models.DateTimeField(blank=True, null=True)),
                ('state_at', models.DateTimeField(blank=True, help_text='When it entered its state.', null=True)),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='upgrades', to='infra.infraapp')),
                ('snapshot', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='used_by', to='infra.snapshot')),
            ],
            options={
                'ordering': ['-id'],
            },
        ),
        migrations.AddField(
            model_name='snapshot',
            name='upgrade',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='snapshots', to='infra.upgrade'),
        ),
        migrations.CreateModel(
            name='UpgradeEvent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField()),
                ('kind', models.CharField(max_length=30)),
                ('text', models.TextField(blank=True)),
                ('data', models.JSONField(blank=True, default=dict)),
                ('fence', models.PositiveBigIntegerField(default=0)),
                ('upgrade', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='events', to='infra.upgrade')),
            ],
            options={
                'ordering': ['id'],
            },
        ),
        migrations.CreateModel(
            name='AppSecret',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(help_text='Its name in Swarm.', max_length=200)),
                ('value', controlplane.secrets.EncryptedTextField()),
                ('made_at', models.DateTimeField(auto_now_add=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='made_secrets', to='infra.infraapp')),
            ],
            options={
                'ordering': ['app', 'name'],
                'constraints': [models.UniqueConstraint(fields=('app', 'name'), name='one_row_per_app_secret')],
            },
        ),
        migrations.CreateModel(
            name='InfraRelease',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('version', models.CharField(max_length=200)),
                ('rank', models.PositiveIntegerField(default=0, help_text="Position among the app's versions, lowest first.")),
                ('commit', models.CharField(max_length=64)),
                ('annotated', models.BooleanField(default=True)),
                ('tagged_at', models.DateTimeField(blank=True, help_text='As given by the tag.', null=True)),
                ('published_at', models.DateTimeField(help_text='The earliest time at which it can have been public.')),
                ('notes', models.TextField(blank=True, help_text='Empty: none were found.', null=True)),
                ('gone', models.BooleanField(default=False, help_text='The tag no longer exists.')),
                ('state', models.CharField(choices=[('candidate', 'candidate'), ('held', 'held'), ('quarantined', 'quarantined')], db_index=True, default='candidate', max_length=12)),
                ('reasons', models.JSONField(blank=True, default=list, help_text="The gate's latest blockers.")),
                ('evidence', models.JSONField(blank=True, default=dict, help_text='Test results, and evidence of a failed upgrade to it.')),
                ('approved_by', models.CharField(blank=True, max_length=255)),
                ('approved_at', models.DateTimeField(blank=True, null=True)),
                ('lifted', models.JSONField(blank=True, default=list, help_text='The blockers that the approval waives: those that were shown.')),
                ('held_told_at', models.DateTimeField(blank=True, help_text='When people were alerted that it is held.', null=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='releases', to='infra.infraapp')),
            ],
            options={
                'verbose_name': 'release',
                'ordering': ['app', '-rank'],
                'constraints': [models.UniqueConstraint(fields=('app', 'version'), name='one_row_per_release')],
            },
        ),
        migrations.AddConstraint(
            model_name='upgrade',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ['snapshotting', 'deploying', 'verifying', 'soaking', 'rolling_back'])), fields=('app',), name='one_upgrade_at_work_per_app'),
        ),
    ]
