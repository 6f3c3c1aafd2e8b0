"""The sandbox forge: a small server that speaks the part of Gitea's API that cc-ci uses, over real git repositories.

It stands in for a Gitea in the demo and in the tests. It knows nothing of the rest of the project, on purpose: it is
held to captured answers of a real server, so that it cannot share an error with the client that is tested against it.

    forge = Forge(Path("/tmp/forge"))
    forge.add_user("alice")
    with serve(forge) as server:
        print(server.url)
"""

from enrollment.sandbox.faults import Fault, Request
from enrollment.sandbox.model import Comment, Issue, Pull, Repo, User
from enrollment.sandbox.server import Server, serve
from enrollment.sandbox.store import Forge

__all__ = ["Comment", "Fault", "Forge", "Issue", "Pull", "Repo", "Request", "Server", "User", "serve"]
