"""The web server's entry."""

import os
from typing import Any

import django
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest


class Request(WSGIRequest):
    """We speak UTF-8. What a client says of its encoding is passed over: some that Python knows (rot13, hex) are none."""

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        super()._set_content_type_params(  # type: ignore[misc]  # Django has no public way
            meta | {"CONTENT_TYPE": meta.get("CONTENT_TYPE", "").partition(";")[0]}
        )


class Application(WSGIHandler):
    request_class = Request


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
django.setup(set_prefix=False)
application = Application()
