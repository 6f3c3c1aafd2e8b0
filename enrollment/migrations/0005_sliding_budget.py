from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def begin_anew(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """What was counted in the clock's minutes is not what is counted in slices, nor the other way round."""
    apps.get_model("enrollment", "Traffic").objects.update(used={})


class Migration(migrations.Migration):

    dependencies = [
        ('enrollment', '0004_policies'),
    ]

    operations = [
        migrations.RunPython(begin_anew, begin_anew),
        migrations.RemoveField(
            model_name='traffic',
            name='before',
        ),
        migrations.RemoveField(
            model_name='traffic',
            name='minute',
        ),
    ]
