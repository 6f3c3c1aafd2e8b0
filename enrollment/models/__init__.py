"""The rows of enrollment: what is watched (core), webhooks and deliveries (webhooks), permissions and traffic (forge_access).

`webhooks` and `forge_access` know `core`, never the other way round. Touches nothing but `controlplane.secrets`.
"""

from enrollment.models.core import Comment, Forge, PullRequest, Repository, RepositoryQuerySet, Switch, Webhooks
from enrollment.models.forge_access import RequestCount, Right, Traffic
from enrollment.models.webhooks import Delivery, WebhookConfig

__all__ = [
    "Comment",
    "Delivery",
    "Forge",
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
