"""The WSGI application."""

import os
from typing import Any

import django
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest


class Request(WSGIRequest):
    """Always decode as UTF-8. Ignores the client's charset: Python knows some that are not character sets (rot13, hex)."""

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        super()._set_content_type_params(  # type: ignore[misc]  # Django has no public way
            meta | {"CONTENT_TYPE": meta.get("CONTENT_TYPE", "").partition(";")[0]}
        )


class Application(WSGIHandler):
    request_class = Request


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
django.setup(set_prefix=False)
application = Application()
