"""A Twisted application with a web site of its own, and the realtime server in it.

    twistd -ny chat.tac

One process, one port: pages and WebSockets at http://localhost:8000.
"""

import os
from pathlib import Path

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application, MultiService
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.static import File

from anycable_tx.config.load import load_settings
from anycable_tx.embedding import CableResource
from anycable_tx.service import AnyCableService

HERE = Path(__file__).parent

# The file, then ANYCABLE_... from the environment. No port of the server's own is opened: see listen below.
settings = load_settings([f"--config_path={HERE / 'anycable.yml'}"], os.environ)
cable = AnyCableService(settings, reactor, listen=False)


class Say(Resource):
    """POST a text: everybody who reads the room gets it."""

    def render_POST(self, request):
        text = request.content.read().decode()

        def stored(_):
            request.setResponseCode(201)
            request.finish()

        def failed(failure):
            request.setResponseCode(503)
            request.finish()

        cable.publish("lobby", {"text": text}).addCallbacks(stored, failed)
        return NOT_DONE_YET


root = Resource()
root.putChild(b"", File(str(HERE / "chat.html"), "text/html; charset=utf-8"))
root.putChild(b"say", Say())
root.putChild(b"cable", CableResource(cable))

services = MultiService()
cable.setServiceParent(services)
where = os.environ.get("CHAT_ENDPOINT", "tcp:8000:interface=127.0.0.1")
StreamServerEndpointService(serverFromString(reactor, where), Site(root)).setServiceParent(services)

application = Application("chat")
services.setServiceParent(application)
