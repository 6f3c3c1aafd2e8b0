"""The rows of enrollment: what is watched (core), webhooks and deliveries (webhooks), permissions and traffic (forge_access), and
people who logged in with a forge (people).

`webhooks`, `forge_access` and `people` know `core`, never the other way round. Touches nothing but `controlplane.secrets`.
"""

from enrollment.models.core import Comment, Forge, PullRequest, Repository, RepositoryQuerySet, Switch, Webhooks
from enrollment.models.forge_access import RequestCount, Right, Traffic
from enrollment.models.people import ForgeAccount
from enrollment.models.webhooks import Delivery, WebhookConfig

__all__ = [
    "Comment",
    "Delivery",
    "Forge",
    "ForgeAccount",
    "PullRequest",
    "Repository",
    "RepositoryQuerySet",
    "RequestCount",
    "Right",
    "Switch",
    "Traffic",
    "WebhookConfig",
    "Webhooks",
]
