"""Which view answers what."""

from django.urls import path

from . import rpc, views

urlpatterns = [
    path("", views.login, name="login"),
    path("rooms/<slug:room>/", views.page, name="room"),
    path("rooms/<slug:room>/cable", views.cable, name="cable"),
    path("rooms/<slug:room>/messages", views.say, name="say"),
    # Only for RPC over HTTP:
    path("_anycable/connect", rpc.connect),
    path("_anycable/command", rpc.command),
    path("_anycable/disconnect", rpc.disconnect),
]
