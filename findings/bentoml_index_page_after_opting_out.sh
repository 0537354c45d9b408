#!/usr/bin/env bash
# BentoML 1.4.39: the page that a served model shows at "/" loads a tag manager from another host, also when
# BENTOML_DO_NOT_TRACK=True says that nothing is to be tracked. Whoever opens the address of a model in a
# browser is made known to a third party, by a server that otherwise asks nobody.
#
# Expected: with the documented opt-out set, the page of one's own service names no host of somebody else.
# Seen: the page's first script comes from www.googletagmanager.com, as without the opt-out; there is no
# setting that takes it out. A route "/" of a mounted ASGI application is found first and replaces the page.
#
# Installs the pinned packages into a temporary folder; ends with 1 if the behaviour is another one, with 2 if the
# service does not start.
set -euo pipefail
folder=$(mktemp -d)
server=""
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "bentoml==1.4.39"
cat > service.py <<'PYTHON'
import bentoml


@bentoml.service
class Echo:
    @bentoml.api
    def echo(self, text: str) -> str:
        return text
PYTHON
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
BENTOML_HOME="$folder/home" BENTOML_DO_NOT_TRACK=True \
  venv/bin/bentoml serve service:Echo --host 127.0.0.1 --port "$port" > server.log 2>&1 &
server=$!
for _ in $(seq 120); do
  if venv/bin/python - "$port" > page.html 2>/dev/null <<'PYTHON'
import sys
import urllib.request

print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/", timeout=5).read().decode())
PYTHON
  then break; fi
  sleep 1
done
if [ ! -s page.html ]; then
  echo "the service did not start:" >&2
  cat server.log >&2
  exit 2
fi
venv/bin/pip list 2>/dev/null | grep -i '^bentoml '
echo "hosts named by scripts and frames of the page at / with BENTOML_DO_NOT_TRACK=True:"
grep -oE "[a-z.]*googletagmanager\.com/[a-z]+\.(js|html)" page.html | sort -u || true
if ! grep -q "www.googletagmanager.com/gtm.js" page.html; then
  echo "changed: the page no longer loads the tag manager" >&2
  exit 1
fi
echo "as described"
