from django.db import migrations, models


def only_the_swarm(apps, schema_editor):
    """The deployer abra is gone; the Swarm is where it put its apps."""
    apps.get_model("infra", "InfraApp").objects.exclude(deployer="swarm").update(deployer="swarm")


class Migration(migrations.Migration):
    dependencies = [("infra", "0003_left")]

    operations = [
        migrations.RunPython(only_the_swarm, migrations.RunPython.noop),
        migrations.AlterField(
            model_name="infraapp",
            name="deployer",
            field=models.CharField(choices=[("swarm", "swarm")], default="swarm", max_length=10),
        ),
    ]
