"""The observers of a run: callbacks made, shown every event, and shut out where they fail."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable
from typing import Any

from flexvae_cli import plugins
from flexvae_cli.api.callbacks import Observer
from flexvae_cli.codes import Bound
from flexvae_cli.engine.events import Event, Noticed
from flexvae_cli.errors import Problem, Terminated, UsageError
from flexvae_cli.faults import fault


@contextlib.contextmanager
def make_observers(callbacks: Iterable[Bound]) -> Generator[dict[str, Observer]]:
    """Call the factories: name -> observer; those that are left in it at the end are closed then, whatever the end is.

    Raises:
        UsageError: everything that a factory refuses, with the plugin that it comes with.
    """
    observers = dict[str, Observer]()
    try:
        _make(callbacks, observers)
        yield observers
    finally:
        _closed(observers)


def _make(callbacks: Iterable[Bound], observers: dict[str, Observer]) -> None:
    problems = []
    for bound in callbacks:
        name = bound.spec.name
        who = f"{name} ({plugins.installed().origin(bound.spec)})"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                made = bound.spec.factory(**bound.values)
        except Exception as error:  # a stranger's code
            what = f"{who} cannot be made: {fault(error, bound.spec.factory.__module__)}"
            problems.append(Problem(what, f"callbacks.{name}"))
        else:
            if callable(made):
                observers[name] = made
            else:
                what = f"{who} makes a {type(made).__name__}, which cannot be called with an event"
                problems.append(Problem(what, f"callbacks.{name}"))
    if problems:
        raise UsageError(*problems)


def observed(events: Iterable[Event], observers: dict[str, Observer]) -> Generator[Event]:
    """Show events to observers, and pass them on.

    An observer that fails is told of and shown nothing more: a run of many days does not end for a logger. At the end
    none are left in `observers`.
    """
    try:
        for event in events:
            faults = [_asked(observers, name, observers[name], event) for name in list(observers)]
            yield event
            yield from _told(faults)
        yield from _told(_closed(observers))
    finally:
        _closed(observers)


def _told(faults: Iterable[str]) -> Generator[Event]:
    yield from (Noticed(text) for text in faults if text)


def _closed(watching: dict[str, Observer]) -> list[str]:
    """Take leave of all that are left."""
    found = []
    for name, observer in list(watching.items()):
        close = getattr(observer, "close", None)
        found.append(_asked(watching, name, close) if close is not None else "")
    watching.clear()
    return found


def _asked(watching: dict[str, Observer], name: str, call: Callable[..., Any], *event: Event) -> str:
    """Call an observer; what is wrong with it in one line, nothing where all is well."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            call(*event)
    except Terminated:
        raise
    except (Exception, SystemExit) as error:
        watching.pop(name, None)
        return f"the callback {name} fails and is switched off: {fault(error)}"
    return ""
