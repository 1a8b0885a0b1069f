"""The daemon's API over HTTP: on a Unix socket of its user, and on a loopback address if asked for.

``openapi.yaml`` describes it; :func:`faops.daemon.http.app.build` makes the application, and
:mod:`faops.daemon.http.server` lets it listen.
"""
