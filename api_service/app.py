# SPDX-License-Identifier: Apache-2.0
"""The composition root of the API, and the place to start reading.

ROUTES says what answers each URL, PIPELINE what happens to a request before
that. `make_parts` wires everything from CONF, which nothing below reads;
`cmd`, `wsgi` and `manage` call it.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import falcon
import webob  # type: ignore[import-untyped]
from keystoneauth1 import exceptions as keystone_errors
from keystonemiddleware import auth_token
from oslo_config import cfg
from oslo_db import options as db_options
from oslo_middleware.http_proxy_to_wsgi import HTTPProxyToWSGI

from api_service import faults, health, identity, middleware, server_parts
from api_service.agents import Agents
from api_service.backups import Backups
from api_service.dispatcher import Dispatcher
from api_service.notifications import Notifications
from api_service.policies import Authorizer
from api_service.policy_parts import PolicyLimits, PolicyParts, make_policy_parts
from api_service.powers import Powers
from api_service.quotas import Quotas, Rates, Streams
from api_service.rebuilds import Rebuilds
from api_service.resources.actions import ServerAction
from api_service.resources.flavors import Flavors, FlavorsDetail, FlavorShow
from api_service.resources.hosts import (
    Aggregates,
    ComputeServices,
    Hosts,
    Zones,
)
from api_service.resources.hypervisors import (
    Hypervisors,
    HypervisorsDetail,
    HypervisorShow,
    HypervisorStatistics,
)
from api_service.resources.images import Images, ImagesDetail, ImageShow
from api_service.resources.instance_actions import InstanceAction, InstanceActions
from api_service.resources.job_events import JobEvents
from api_service.resources.limits import Extensions, Limits
from api_service.resources.metadata import ServerMetadata, ServerMetadataItem
from api_service.resources.operations import Job, Jobs
from api_service.resources.policies import (
    Policies,
    Policy,
    PolicyRetention,
    PolicyRun,
    PolicyRuns,
)
from api_service.resources.servers import Server, Servers, ServersDetail
from api_service.resources.services import Resource, Services
from api_service.resources.versions import (
    Health,
    NoIdentityDocument,
    OldVersionDocument,
    OpenApi,
    OurVersionDocument,
    Root,
    VersionDocument,
)
from api_service.service_calls import ServiceEndpoint
from api_service.snapshots import Snapshots
from api_service.store.engine import Database
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from api_service.store.overrides import Overrides
from api_service.visibility import Visibility
from common import conf, notifier, rpc
from common.errors import ConfigurationError
from common.glance import ImageService

PROG = "stillframe-api"
LOG_FILE = "n-api.log"

#: URL template, what answers it, and the suffix of its methods where one class answers two URLs.
ROUTES: tuple[tuple[str, type[Resource], str | None], ...] = (
    ("/", Root, None),
    ("/healthcheck", Health, None),
    ("/v2", OldVersionDocument, None),
    ("/v2.1", VersionDocument, None),
    ("/v3", NoIdentityDocument, None),
    ("/v2.1/servers", Servers, None),
    ("/v2.1/servers/detail", ServersDetail, None),
    ("/v2.1/servers/{server_id}", Server, None),
    ("/v2.1/servers/{server_id}/action", ServerAction, None),
    ("/v2.1/flavors", Flavors, None),
    ("/v2.1/flavors/detail", FlavorsDetail, None),
    ("/v2.1/flavors/{flavor_id}", FlavorShow, None),
    ("/v2.1/flavors/{flavor_id}/os-extra_specs", FlavorShow, "extra_specs"),
    ("/v2.1/flavors/{flavor_id}/os-extra_specs/{key}", FlavorShow, "extra_spec"),
    ("/v2.1/servers/{server_id}/metadata", ServerMetadata, None),
    ("/v2.1/servers/{server_id}/metadata/{key}", ServerMetadataItem, None),
    ("/v2.1/servers/{server_id}/os-instance-actions", InstanceActions, None),
    ("/v2.1/servers/{server_id}/os-instance-actions/{request_id}", InstanceAction, None),
    ("/v2.1/images", Images, None),
    ("/v2.1/images/detail", ImagesDetail, None),
    ("/v2.1/images/{image_id}", ImageShow, None),
    ("/v2.1/os-services", ComputeServices, None),
    ("/v2.1/os-hypervisors", Hypervisors, None),
    ("/v2.1/os-hypervisors/detail", HypervisorsDetail, None),
    ("/v2.1/os-hypervisors/statistics", HypervisorStatistics, None),
    ("/v2.1/os-hypervisors/{hypervisor_id}", HypervisorShow, None),
    ("/v2.1/os-hypervisors/{hypervisor_id}/uptime", HypervisorShow, "uptime"),
    ("/v2.1/os-hypervisors/{hypervisor_id}/search", HypervisorShow, "search"),
    ("/v2.1/os-hypervisors/{hypervisor_id}/servers", HypervisorShow, "servers"),
    ("/v2.1/os-availability-zone", Zones, None),
    ("/v2.1/os-availability-zone/detail", Zones, "detail"),
    ("/v2.1/os-aggregates", Aggregates, None),
    ("/v2.1/os-aggregates/{aggregate_id}", Aggregates, "one"),
    ("/v2.1/limits", Limits, None),
    ("/v2.1/extensions", Extensions, None),
    ("/v2.1/extensions/{alias}", Extensions, "one"),
    ("/v1", OurVersionDocument, None),
    ("/v1/openapi.json", OpenApi, None),
    ("/v1/hosts", Hosts, None),
    ("/v1/jobs", Jobs, None),
    ("/v1/jobs/{job_id}", Job, None),
    ("/v1/jobs/{job_id}/events", JobEvents, None),
    ("/v1/policies", Policies, None),
    ("/v1/policies/{policy_id}", Policy, None),
    ("/v1/policies/{policy_id}/run", PolicyRun, None),
    ("/v1/policies/{policy_id}/runs", PolicyRuns, None),
    ("/v1/policies/{policy_id}/retention", PolicyRetention, None),
)

#: From the outside in: the log line sees everything, the resource only what passed the rest.
#: After them comes who asks, as `[api] auth_strategy` says.
PIPELINE: tuple[type[Any], ...] = (
    middleware.RequestIds,
    middleware.RequestLog,
    middleware.WholeRequests,
    middleware.Microversions,
    middleware.RequestRates,
)

_KEYSTONE_TIMEOUT_S = 10
_RPC_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The wired API: what the daemon runs and the WSGI application serves."""

    database: Database
    ledger: Ledger
    inventory: Inventory
    agents: Agents
    images: ImageService
    dispatcher: Dispatcher
    policies: PolicyParts
    transport: rpc.Transport
    streams: Streams
    calls: ServiceEndpoint
    #: None: nobody wants notifications.
    outbox: notifier.Outbox | None
    application: falcon.App[Any, Any]


def make_parts(settings: cfg.ConfigOpts) -> Parts:
    """Wire the API; raise ConfigurationError if an option or the database's schema cannot work."""
    database = make_database(settings)
    database.require_current()
    inventory, overrides = Inventory(database), Overrides(database)
    outbox = make_outbox(settings)
    ledger = Ledger(database, Notifications(inventory, outbox).job_moved if outbox else None)
    agents = Agents(inventory, settings.service_down_time)
    images = ImageService(conf.glance.settings(settings))
    transport = rpc.Transport(settings)
    dispatcher = server_parts.dispatcher_over(transport, ledger, agents)
    authorizer = Authorizer(settings)
    visibility = Visibility(authorizer=authorizer, inventory=inventory, ledger=ledger)
    snapshots = _snapshots(settings, ledger, agents, images)
    backups = Backups(snapshots=snapshots)
    services = Services(
        authorizer=authorizer,
        visibility=visibility,
        inventory=inventory,
        ledger=ledger,
        agents=agents,
        snapshots=snapshots,
        backups=backups,
        policies=_policies(settings, visibility, backups, dispatcher),
        overrides=overrides,
        powers=_powers(settings, overrides, snapshots),
        lifecycle=server_parts.make_lifecycle(settings, snapshots),
        rebuilds=_rebuilds(settings, overrides, snapshots),
        dispatcher=dispatcher,
        health_checks=health.checks(settings, database),
        link_prefix=settings.api.compute_link_prefix,
        max_limit=settings.api.max_limit,
        rates=Rates(settings.quota.requests_per_second),
        # Each holds a thread: whoever does not wait must find one, too.
        streams=Streams(most=min(settings.api.event_streams, settings.api.threads // 2)),
    )
    return Parts(
        database=database,
        ledger=ledger,
        inventory=inventory,
        agents=agents,
        images=images,
        dispatcher=dispatcher,
        policies=services.policies,
        transport=transport,
        streams=services.streams,
        calls=make_calls(services, transport.threads // 2),
        outbox=outbox,
        application=make_application(services, make_identity(settings)),
    )


def make_outbox(settings: cfg.ConfigOpts) -> notifier.Outbox | None:
    """Return what sends notifications, None where `[oslo_messaging_notifications]` wants none."""
    sender = rpc.Sender(settings, f"{PROG}:{socket.gethostname()}")
    return None if sender.is_silent else notifier.Outbox(sender.send)


def make_calls(services: Services, most_at_once: int) -> ServiceEndpoint:
    """Return what other services call, beside the WSGI application over the same parts."""
    return ServiceEndpoint(
        visibility=services.visibility,
        snapshots=services.snapshots,
        backups=services.backups,
        powers=services.powers,
        rebuilds=services.rebuilds,
        lifecycle=services.lifecycle,
        dispatcher=services.dispatcher,
        most_at_once=max(1, most_at_once),
    )


def _snapshots(
    settings: cfg.ConfigOpts, ledger: Ledger, agents: Agents, images: ImageService
) -> Snapshots:
    return Snapshots(
        ledger=ledger,
        agents=agents,
        images=images,
        accept_timeout_s=settings.api.job_accept_timeout,
        quotas=_quotas(settings),
    )


def _powers(settings: cfg.ConfigOpts, overrides: Overrides, beside: Snapshots) -> Powers:
    return Powers(
        ledger=beside.ledger,
        overrides=overrides,
        agents=beside.agents,
        accept_timeout_s=settings.api.job_accept_timeout,
    )


def _policies(
    settings: cfg.ConfigOpts, visibility: Visibility, backups: Backups, dispatcher: Dispatcher
) -> PolicyParts:
    most, beside = settings.quota.policies, backups.snapshots
    verifications = server_parts.make_verifications(settings, beside.agents, beside.images)
    return make_policy_parts(
        database=beside.ledger.database,
        visibility=visibility,
        images=beside.images,
        backups=backups,
        dispatcher=dispatcher,
        verify=lambda caller, backup: verifications.request(caller, backup.image_id),
        limits=PolicyLimits(
            backups_per_host=settings.policies.backups_per_host,
            min_interval_s=settings.policies.min_interval,
            missed_after_s=settings.policies.missed_after,
            history_days=settings.policies.history_days,
            most=None if most < 0 else most,
        ),
    )


def _rebuilds(settings: cfg.ConfigOpts, overrides: Overrides, beside: Snapshots) -> Rebuilds:
    return Rebuilds(
        ledger=beside.ledger,
        overrides=overrides,
        agents=beside.agents,
        images=beside.images,
        accept_timeout_s=settings.api.job_accept_timeout,
        quotas=beside.quotas,
    )


def _quotas(settings: cfg.ConfigOpts) -> Quotas:
    most = settings.quota.open_jobs
    return Quotas(
        open_jobs=None if most < 0 else most,
        image_metadata_items=settings.quota.image_metadata_items,
    )


def make_application(services: Services, who: Any = None) -> falcon.App[Any, Any]:
    """Return the WSGI application over `services`; unless told otherwise it believes everybody."""
    before = [one() for one in PIPELINE]
    application = falcon.App(middleware=[*before, who or middleware.NoIdentity()])
    application.req_options.strip_url_path_trailing_slash = True
    # Falcon has a handler of its own for HTTPError, which the one for Exception leaves alone.
    for kind in (Exception, falcon.HTTPError):
        application.add_error_handler(kind, faults.handle)
    for url, resource, suffix in ROUTES:
        application.add_route(url, resource(services), suffix=suffix)
    return application


def make_identity(settings: cfg.ConfigOpts) -> Any:
    """Return the middleware of `[api] auth_strategy`.

    Raises ConfigurationError if [keystone_authtoken] cannot work.
    """
    if settings.api.auth_strategy == "noauth":
        return middleware.NoIdentity()
    group = "keystone_authtoken"
    for _, options in auth_token.list_opts():
        settings.register_opts(options, group=group)
    if not (settings[group].auth_type or settings[group].auth_section):
        raise ConfigurationError(
            "[keystone_authtoken] needs auth_type and the service's credentials (see "
            "docs/identity.md); or [api] auth_strategy = noauth for a demo"
        )
    # Its own default waits for ever.
    settings.set_default("http_connect_timeout", _KEYSTONE_TIMEOUT_S, group=group)
    # What the access rules of an application credential call this API.
    settings.set_default("service_type", "compute", group=group)
    try:
        check = auth_token.AuthProtocol(identity.confirmed, {"oslo_config_config": settings})
    except keystone_errors.ClientException as error:
        raise ConfigurationError(f"[keystone_authtoken]: {error}") from error
    return identity.KeystoneIdentity(check, cache_s=settings[group].token_cache_time)


def behind_proxy(application: Any, settings: cfg.ConfigOpts) -> Any:
    """Return the application with a proxy's headers obeyed, where the configuration says so."""
    proxied = HTTPProxyToWSGI(application, settings)

    # A plain function, for servers that look at its arguments to tell WSGI from ASGI. Calling
    # `proxied` itself would have webob take each reply apart and put it together again.
    def obeying(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        proxied.process_request(webob.Request(environ))
        return application(environ, start_response)

    return obeying


def make_database(settings: cfg.ConfigOpts) -> Database:
    """Return the database of `[database] connection`, by default SQLite in `state_path`."""
    register_database_options(settings)
    group = settings.database
    connection = group.connection or _default_database(Path(settings.state_path))
    return Database(
        connection,
        max_retries=group.max_retries,
        retry_interval=group.retry_interval,
        connection_recycle_time=group.connection_recycle_time,
        max_pool_size=group.max_pool_size,
        max_overflow=group.max_overflow,
        pool_timeout=group.pool_timeout,
    )


def _default_database(state_path: Path) -> str:
    state_path.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{state_path}/api.sqlite"


def register_database_options(settings: cfg.ConfigOpts) -> None:
    """Register oslo.db's options (harmless when done twice)."""
    settings.register_opts(db_options.database_opts, group="database")
