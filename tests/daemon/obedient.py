"""A worker that does what it is told, and starts in no time because it imports nothing of faops."""

from __future__ import annotations

# Runs the Python text under "do" of each request, which answers by reply(value), tells by tell(event) and may look at
# what is listed in controls: the requests without an answer that came before.
OBEDIENT = """
import ctypes, faulthandler, json, os, signal, socket, subprocess, sys, time
faulthandler.enable()
channel = socket.socket(fileno=int(sys.argv[1]))
os.set_inheritable(channel.fileno(), False)
controls = []
def send(text):
    channel.sendall(text.encode() + b"\\n")
def reply(value=None):
    send(json.dumps({"serial": request["serial"], "value": value}))
def fail(kind, message):
    send(json.dumps({"serial": request["serial"], "error": {"type": kind, "message": message}}))
def tell(**event):
    send(json.dumps({"serial": request["serial"], "event": event}))
def start(program="import time; time.sleep(100)", **options):
    return subprocess.Popen([sys.executable, "-c", program], **options).pid
def hear():
    controls.append(json.loads(lines.readline()))
lines = channel.makefile("rb")
for line in lines:
    request = json.loads(line)
    if "serial" not in request:
        controls.append(request)
        if request["do"] == "exit":
            break
    elif request["do"] == "prepare":
        reply()
    else:
        exec(request["task"]["words"] if request["do"] == "tune" else request["do"])
"""
