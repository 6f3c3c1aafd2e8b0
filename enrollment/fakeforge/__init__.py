"""The fake forge: a small server with the part of Gitea's API that cc-ci uses, over real git repositories.

It replaces a Gitea in the demo and in the tests. It deliberately imports nothing else of the project and is tested against
captured responses of a real server, so that it cannot share a bug with the client that is tested against it.

    forge = Forge(Path("/tmp/forge"))
    forge.add_user("alice")
    with serve(forge) as server:
        print(server.url)
"""

from enrollment.fakeforge.faults import Fault, Request
from enrollment.fakeforge.model import Comment, Issue, Pull, Repo, User
from enrollment.fakeforge.server import Server, serve
from enrollment.fakeforge.store import Forge

__all__ = ["Comment", "Fault", "Forge", "Issue", "Pull", "Repo", "Request", "Server", "User", "serve"]
