# SPDX-License-Identifier: Apache-2.0
"""[api]: the REST daemon and its ledger of jobs."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "api"

OPTS = [
    cfg.HostAddressOpt(
        "bind_host", default="127.0.0.1", help="Address that stillframe-api listens on."
    ),
    cfg.PortOpt(
        "bind_port",
        default=8774,
        help="Port that stillframe-api listens on. Nova's port: beside Nova, choose another.",
    ),
    cfg.IntOpt("threads", default=16, min=1, help="Requests that stillframe-api serves at a time."),
    cfg.IntOpt(
        "event_streams",
        default=4,
        min=0,
        help="""
Callers that may wait for events of jobs (`/v1/jobs/ID/events`) in this process at
a time, half of them of one project; never more than half of `threads`. Each
holds a thread. Whoever comes beyond gets 503 or 429 and may ask again.
""",
    ),
    cfg.BoolOpt(
        "serve_http",
        default=True,
        help="""
Serve REST from stillframe-api itself. Turn it off where uWSGI, gunicorn or
another server runs `api_service.wsgi:application`; stillframe-api must run all
the same: it consumes the agents' reports and casts what is waiting.
""",
    ),
    cfg.StrOpt(
        "auth_strategy",
        default="keystone",
        choices=[
            (
                "keystone",
                "tokens, checked with Keystone as [keystone_authtoken] says; service tokens too",
            ),
            (
                "noauth",
                "for demos and tests: believes the header `X-Auth-Token: USER:PROJECT`, "
                "and a user named admin is an administrator",
            ),
        ],
        help="How callers are told apart.",
    ),
    cfg.BoolOpt(
        "noauth_anywhere",
        default=False,
        help="""
Let `auth_strategy = noauth` listen on an address that is not the loopback and,
under another WSGI server, serve callers from elsewhere than its own host.
Anybody who reaches the port is then anybody they like. Never in production.
""",
    ),
    cfg.StrOpt(
        "compute_link_prefix",
        help="""
URL that clients reach this API under, if a proxy stands before it; used in links.
`[oslo_middleware] enable_proxy_headers_parsing` learns it from the proxy instead.
""",
    ),
    cfg.StrOpt(
        "ssl_cert_file",
        help="""
Certificate (PEM, with what leads to the CA) that stillframe-api serves HTTPS
with; unset, it serves HTTP. The file is read at the start only.
""",
    ),
    cfg.StrOpt("ssl_key_file", help="The certificate's private key (PEM)."),
    cfg.IntOpt("max_limit", default=1000, min=1, help="Most items that one list returns."),
    cfg.IntOpt(
        "job_accept_timeout",
        default=300,
        min=5,
        help="""
Seconds that a job may wait for its agent to accept it (broker or agent away).
Until then it is cast again every `dispatch_interval`; after that it ends in
error, its image is removed, and an agent that gets the message later refuses it.
""",
    ),
    cfg.IntOpt(
        "dispatch_interval",
        default=5,
        min=1,
        help="Seconds between two rounds of casting what no agent has accepted yet.",
    ),
    cfg.IntOpt(
        "job_silence_timeout",
        default=3600,
        min=10,
        help="""
Seconds that an accepted job may be silent while its agent is down before the
API ends it in error and frees the instance. An agent that comes back earlier
reports the outcome itself.
""",
    ),
]
