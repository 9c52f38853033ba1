"""The application that HTTP calls are tested with."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import Any

import pytest

from anycable_tx.testing.rpc_app import Application
from anycable_tx.testing.rpc_http_app import HttpApp


def post(http: HttpApp, path: str, body: str = '{"env":{}}', **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", http.server_port, timeout=10)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if response.status == 200 else text


def test_it_serves_an_application():
    with HttpApp(Application()) as http:
        status, reply = post(http, "/_anycable/connect", **{"x-anycable-meta-sid": "abc"})
        assert (status, reply["identifiers"]) == (200, '{"user": "abc"}')
        assert http.app.asked == [("connect", {"env": {}}, "abc")]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/_anycable/restore", "{}", 404),
        ("/_anycable/refresh", "{}", 404),
        ("/_anycable/__init__", "{}", 404),
        ("/connect", "{}", 404),
        ("/_anycable/connect", "", 422),
        ("/_anycable/connect", "{", 422),
    ],
)
def test_it_refuses_what_it_does_not_know(path: str, body: str, status: int):
    with HttpApp(Application()) as http:
        assert post(http, path, body)[0] == status


@pytest.mark.parametrize(("token", "status"), [("Bearer key", 200), ("Bearer yek", 401), ("key", 401), ("", 401)])
def test_it_lets_in_who_has_the_secret(token: str, status: int):
    with HttpApp(Application(), secret="key") as http:
        assert post(http, "/_anycable/connect", **({"authorization": token} if token else {}))[0] == status
