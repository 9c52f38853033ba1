"""The pages, and what they ask for. The login is a name in the session; an application has a real one instead."""

from collections.abc import Callable
from functools import wraps

from django import forms
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from . import realtime, rooms

View = Callable[..., HttpResponse]


class Login(forms.Form):
    name = forms.CharField(max_length=50)


class Message(forms.Form):
    text = forms.CharField(max_length=1000)


def in_a_room(view: View) -> View:
    """Only for who is logged in, and rooms that exist: here the application decides who may read one."""

    @wraps(view)
    def checked(request: HttpRequest, room: str) -> HttpResponse:
        if "user" not in request.session:
            return redirect("login")
        if room not in rooms.ROOMS:
            raise Http404
        return view(request, room)

    return checked


@ensure_csrf_cookie
def login(request: HttpRequest) -> HttpResponse:
    form = Login(request.POST or None)
    if not form.is_valid():
        return render(request, "login.html", {"form": form})
    request.session.cycle_key()
    request.session["user"] = form.cleaned_data["name"]
    return redirect("room", "lobby")


@require_GET
@in_a_room
def page(request: HttpRequest, room: str) -> HttpResponse:
    return render(request, "room.html", {"form": Message(), "room": room})


@require_GET
@in_a_room
def cable(request: HttpRequest, room: str) -> HttpResponse:
    """What the browser connects with."""
    return JsonResponse(
        {
            "url": settings.CABLE_URL,
            "token": realtime.token_for(request.session["user"]),
            "stream": realtime.signed_stream(rooms.stream_of(room)),
        }
    )


@require_POST
@in_a_room
def say(request: HttpRequest, room: str) -> HttpResponse:
    form = Message(request.POST)
    if not form.is_valid():
        return JsonResponse(form.errors, status=422)
    rooms.say(room, request.session["user"], form.cleaned_data["text"])
    return HttpResponse(status=201)
