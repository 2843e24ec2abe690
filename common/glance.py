# SPDX-License-Identifier: Apache-2.0
"""Glance, as both daemons use it: the only importer of glanceclient.

Records go through python-glanceclient; an image's data is put directly on the
same keystoneauth session, because glanceclient's own loop is slower and does
not begin again at byte 0 when it repeats a broken upload. Calls use the
service's own credentials and forward the request id of the context bound to
the thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar

import tenacity
from glanceclient import exc
from glanceclient.common import http as glance_http
from glanceclient.v2 import images as glance_images
from glanceclient.v2 import schemas as glance_schemas
from keystoneauth1 import exceptions as keystone_errors

from common import context
from common.errors import StillframeError

LOG = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: How many images a list may hold.
FOUND_MAX = 10_000
_PAGE_SIZE = 1000
_NO_CONTENT = 204
_GONE = (404, 410)
_SERVER_ERROR = 500
_DOWNLOAD_BYTES = 1 << 20
_OCTETS = {"Content-Type": "application/octet-stream"}
_JSON_PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


class ImageServiceUnavailable(StillframeError):
    """Glance cannot be reached, does not answer in time or fails inside."""

    code = "image_service_unavailable"
    retryable = True


class ImageNotFound(StillframeError):
    """The image does not exist (any more)."""

    code = "image_not_found"


class ImageRefused(StillframeError):
    """Glance refuses what was asked: quota, a bad property, a state that forbids it."""

    code = "image_refused"

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GlanceSettings:
    """`session` is a keystoneauth session; the rest narrows down which Glance it means."""

    session: Any
    endpoint_override: str | None = None
    region_name: str | None = None
    interfaces: tuple[str, ...] = ("internal", "public")
    num_retries: int = 3
    request_timeout_s: float = 30.0
    upload_timeout_s: float = 300.0
    #: Send an image's data in chunks rather than with a Content-Length.
    chunked_upload: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image's record; `properties` are the additional, string-valued ones."""

    id: str
    name: str | None
    status: str
    owner: str | None
    size_bytes: int | None
    hash_algorithm: str | None
    hash_value: str | None
    disk_format: str | None
    container_format: str | None
    min_disk_gib: int
    min_ram_mib: int
    properties: dict[str, str]
    #: What a guest sees of it; None: Glance does not know.
    virtual_bytes: int | None = None
    #: Glance deletes it for nobody.
    is_protected: bool = False
    visibility: str = "private"
    #: As Glance writes times; empty: it does not tell.
    created_at: str = ""
    updated_at: str = ""


class Body(Protocol):
    """An image's data: its exact length, and a fresh pass over it at each iteration."""

    def __len__(self) -> int:
        """Return the length in bytes."""

    def __iter__(self) -> Iterator[bytes | bytearray | memoryview]:
        """Yield the data from byte 0."""


class _Unsized:
    """A body that does not tell its length, so requests sends it in chunks, a buffer each."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes | bytearray | memoryview]:
        return iter(self._body)


def _typed(call: Callable[P, R]) -> Callable[P, R]:
    """Turn what glanceclient and keystoneauth raise into exceptions of ours."""

    @functools.wraps(call)
    def typed(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except exc.HTTPNotFound as error:
            raise ImageNotFound("the image does not exist") from error
        except exc.HTTPException as error:
            raise _of_status(int(error.code), str(error)) from error
        except (exc.BaseException, keystone_errors.ClientException, OSError) as error:
            LOG.warning("Glance: %s", error)
            raise ImageServiceUnavailable("the image service cannot be reached") from error

    return typed


class ImageService:
    """Glance with one service's credentials; thread-safe, every wait bounded."""

    def __init__(self, settings: GlanceSettings) -> None:
        self._settings = settings
        self._schemas = _SchemaCache(self._http_client)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ImageServiceUnavailable),
            stop=tenacity.stop_after_attempt(settings.num_retries + 1),
            wait=tenacity.wait_exponential(multiplier=0.5, max=10),
            before_sleep=tenacity.before_sleep_log(LOG, logging.WARNING),
            reraise=True,
        )

    @_typed
    def create(self, image_id: str, record: Mapping[str, Any]) -> Image:
        """Create the record of an image, status `queued`; `record` as Glance's v2 API names it.

        Not repeated on failure: the caller knows the id and can look.
        Raises ImageRefused, ImageServiceUnavailable.
        """
        # Not glanceclient's own `create`: it takes a property named `backend` for a store's name.
        _, body = self._http_client().post("/v2/images", data={**record, "id": image_id})
        return _image(body)

    def show(self, image_id: str) -> Image:
        """Return an image's record. Raises ImageNotFound, ImageServiceUnavailable."""
        return self._retrying(lambda: self.look(image_id))

    def look(self, image_id: str) -> Image:
        """Return an image's record as `show` does, in one try."""
        return _image(self._get(image_id))

    def duplicate_record(
        self,
        image_id: str,
        new_id: str,
        name_suffix: str,
        changes: Mapping[str, str],
        without: Collection[str] = (),
    ) -> None:
        """Create a record (status `queued`) like that of another image, without its data.

        Name, owner, visibility, sizes and properties are the other's, except
        for those in `without`; `changes` are set on top. Raises ImageNotFound,
        ImageRefused, ImageServiceUnavailable.
        """
        found = self._retrying(lambda: self._get(image_id))
        record = {key: found[key] for key in _COPIED if found.get(key) is not None}
        record["name"] = f"{record.get('name', image_id)}{name_suffix}"
        properties = _image(found).properties
        kept = {name: value for name, value in properties.items() if name not in without}
        self.create(new_id, record | kept | dict(changes))

    def made_by(self, property_name: str, value: str) -> list[Image]:
        """Return the images, of every project, that carry a property with this value.

        Hidden ones too (increments are), which Glance leaves out unless they are asked for.
        """
        asked: tuple[dict[str, Any], ...] = ({}, {"os_hidden": True})
        return [
            image
            for more in asked
            for image in self._retrying(self._list, {property_name: value, **more})
        ]

    def found(self, filters: Mapping[str, str]) -> list[Image]:
        """Return the images, of every project, that Glance's filters leave; FOUND_MAX at most."""
        paging = {"limit": FOUND_MAX, "page_size": _PAGE_SIZE}
        return self._retrying(self._list, dict(filters), **paging)

    def update(self, image_id: str, changes: Mapping[str, Any]) -> None:
        """Set attributes and properties of an image; the others stay."""
        self._retrying(lambda: self._update(image_id, changes))

    def delete(self, image_id: str) -> None:
        """Delete an image; one that is gone already is fine."""
        try:
            self._retrying(lambda: self._delete(image_id))
        except ImageNotFound:
            LOG.debug("Image %s was gone already", image_id)

    def upload(self, image_id: str, body: Body) -> None:
        """Put an image's data in one pass of `body`; not repeated here.

        Raises ImageNotFound if the image was deleted meanwhile, ImageRefused,
        ImageServiceUnavailable, and whatever iterating `body` raises.
        """
        client = self._http_client()
        timeout_s = self._settings.upload_timeout_s
        try:
            response = client.session.put(
                f"/v2/images/{image_id}/file",
                data=_Unsized(body) if self._settings.chunked_upload else body,
                # Not every Glance reads it; one that does allocates by it, chunks or not.
                headers=_OCTETS | {"x-openstack-image-size": str(len(body))} | _request_id(),
                endpoint_filter=self._endpoint_filter(),
                endpoint_override=self._settings.endpoint_override,
                raise_exc=False,
                log=False,
                connect_retries=0,
                timeout=(timeout_s, timeout_s),
            )
        except (keystone_errors.ClientException, OSError) as error:
            LOG.warning("Glance, during the upload: %s", error)
            raise ImageServiceUnavailable("the upload to the image service broke off") from error
        if response.status_code != _NO_CONTENT:
            raise _of_status(response.status_code, response.reason or "no reason given")

    def download(self, image_id: str) -> Iterator[bytes]:
        """Yield an image's data; it ends early with an exception, never silently.

        Raises ImageNotFound, ImageServiceUnavailable.
        """
        client = self._http_client()
        try:
            response = client.session.get(
                f"/v2/images/{image_id}/file",
                headers=_request_id(),
                endpoint_filter=self._endpoint_filter(),
                endpoint_override=self._settings.endpoint_override,
                raise_exc=False,
                log=False,
                stream=True,
                timeout=self._settings.request_timeout_s,
            )
            with contextlib.closing(response):
                if not response.ok:
                    raise _of_status(response.status_code, response.reason or "no reason given")
                yield from response.iter_content(_DOWNLOAD_BYTES)
        except (keystone_errors.ClientException, OSError) as error:
            LOG.warning("Glance, during the download: %s", error)
            raise ImageServiceUnavailable(
                "the download from the image service broke off"
            ) from error

    @_typed
    def members(self, image_id: str) -> frozenset[str]:
        """Return the projects that a shared image is shared with, in one try."""
        _, body = self._http_client().get(f"/v2/images/{image_id}/members")
        return frozenset(one["member_id"] for one in body["members"])

    @_typed
    def _get(self, image_id: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._controller().get(image_id)
        return found

    @_typed
    def _list(self, filters: dict[str, Any], **paging: int) -> list[Image]:
        return [_image(found) for found in self._controller().list(filters=filters, **paging)]

    @_typed
    def _update(self, image_id: str, changes: Mapping[str, Any]) -> None:
        # Not glanceclient's own `update`, which fetches the record first to find what differs.
        patch = [
            # Names as JSON pointers write them (RFC 6901).
            {"op": "add", "path": "/" + name.replace("~", "~0").replace("/", "~1"), "value": value}
            for name, value in changes.items()
        ]
        self._http_client().patch(
            f"/v2/images/{image_id}", headers=dict(_JSON_PATCH), data=json.dumps(patch)
        )

    @_typed
    def _delete(self, image_id: str) -> None:
        self._controller().delete(image_id)

    def _controller(self) -> Any:
        return glance_images.Controller(self._http_client(), self._schemas)

    def _http_client(self) -> Any:
        return glance_http.SessionClient(
            session=self._settings.session,
            endpoint_override=self._settings.endpoint_override,
            additional_headers=_request_id(),
            **self._endpoint_filter(),
        )

    def _endpoint_filter(self) -> dict[str, Any]:
        return {
            "service_type": "image",
            "interface": list(self._settings.interfaces),
            "region_name": self._settings.region_name,
        }


class _SchemaCache:
    """glanceclient asks Glance for the image schema with each controller; once is enough."""

    def __init__(self, http_client: Callable[[], Any]) -> None:
        self._http_client = http_client
        self._schemas: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return the schema `name`, asked for at most once."""
        if name not in self._schemas:
            self._schemas[name] = glance_schemas.Controller(self._http_client()).get(name)
        return self._schemas[name]


def _request_id() -> dict[str, str]:
    bound = context.current()
    return {"X-OpenStack-Request-ID": bound.request_id} if bound and bound.request_id else {}


def _of_status(status: int, words: str) -> StillframeError:
    if status in _GONE:
        return ImageNotFound("the image was deleted meanwhile")
    if status >= _SERVER_ERROR:
        LOG.warning("Glance failed inside: %s", words)
        return ImageServiceUnavailable(f"the image service failed (status {status})")
    return ImageRefused(f"the image service refuses: {words}", status)


#: What an image has besides its additional properties (Glance's v2 schema).
_ATTRIBUTES = frozenset(
    """
    id name status owner size virtual_size os_hash_algo os_hash_value os_hidden checksum
    disk_format container_format min_disk min_ram visibility protected tags created_at
    updated_at file schema self locations direct_url stores members
    """.split()  # noqa: SIM905 # as words it can be read
)

_COPIED = ("name", "owner", "visibility", "min_disk", "min_ram", "tags")


def _image(record: Mapping[str, Any]) -> Image:
    return Image(
        id=record["id"],
        name=record.get("name"),
        status=record["status"],
        owner=record.get("owner"),
        size_bytes=record.get("size"),
        hash_algorithm=record.get("os_hash_algo"),
        hash_value=record.get("os_hash_value"),
        disk_format=record.get("disk_format"),
        container_format=record.get("container_format"),
        min_disk_gib=record.get("min_disk") or 0,
        min_ram_mib=record.get("min_ram") or 0,
        properties={
            key: value
            for key, value in record.items()
            if key not in _ATTRIBUTES and isinstance(value, str)
        },
        virtual_bytes=record.get("virtual_size"),
        is_protected=bool(record.get("protected")),
        visibility=record.get("visibility") or "private",
        created_at=record.get("created_at") or "",
        updated_at=record.get("updated_at") or "",
    )
