"""A small typed client of the HTTP API. `RebaseClient` is its entry point; it needs no code of the
service."""

from __future__ import annotations

from rebase.client.errors import ServiceError, ServiceUnreachable
from rebase.client.http import RebaseClient
from rebase.client.models import (
    AnchorPool,
    AnchorPoolList,
    Campaign,
    CampaignReport,
    Delivery,
    DeliveryList,
    Event,
    Job,
    JobList,
    MethodInfo,
    Progress,
    SigningSecret,
    SigningSecretList,
    Subscription,
)

__all__ = [
    "AnchorPool",
    "AnchorPoolList",
    "Campaign",
    "CampaignReport",
    "Delivery",
    "DeliveryList",
    "Event",
    "Job",
    "JobList",
    "MethodInfo",
    "Progress",
    "RebaseClient",
    "ServiceError",
    "ServiceUnreachable",
    "SigningSecret",
    "SigningSecretList",
    "Subscription",
]
