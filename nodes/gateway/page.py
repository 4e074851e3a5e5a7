"""The page at `/`: how the cluster stands, as a browser shows it.

The law: it loads nothing from anywhere and runs only the one script below, which the policy names
by its hash; what it shows is set as text, never as markup.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;
color:#1a1c1e;background:#fcfcfd}
h1{font-size:1.3rem;margin:0 0 1rem}h2{font-size:1rem;margin:1.5rem 0 .4rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #e3e5e8;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
th{font-weight:600;color:#5a6068}
.good{color:#18794e}.bad{color:#c62a2f}
input{font:inherit;padding:.2rem .4rem}
@media(prefers-color-scheme:dark){body{color:#e6e8ea;background:#151718}
th,td{border-color:#2b2f31}th{color:#9ba1a6}}
"""

_SCRIPT = """
'use strict';
const $ = id => document.getElementById(id);
let token = '';
function row(table, cells, kind) {
  const tr = table.insertRow();
  for (const cell of cells) {
    const td = tr.appendChild(document.createElement(kind || 'td'));
    td.textContent = cell === null || cell === undefined ? '-' : String(cell);
  }
  return tr;
}
function fill(id, head, rows) {
  const table = $(id);
  table.replaceChildren();
  row(table, head, 'th');
  for (const cells of rows) row(table, cells);
}
async function get(path) {
  const headers = token ? {Authorization: 'Bearer ' + token} : {};
  const answer = await fetch(path, {headers, cache: 'no-store'});
  if (answer.status === 401) $('ask').hidden = false;
  return answer.ok || answer.status === 503 ? answer.json() : null;
}
async function show() {
  try {
    const health = await get('/health');
    const state = $('state');
    state.textContent = health.status;
    state.className = health.quorum ? 'good' : 'bad';
    fill('health', ['node', 'role', 'leader', 'term', 'members answering', 'durability',
      'insecure', 'version'], [[health.node_id, health.role, health.leader, health.term,
      health.answering + ' of ' + health.members, health.durability, health.insecure,
      health.version]]);
    const locks = health.quorum ? await get('/lock') : null;
    if (locks && locks.locks) fill('locks', ['lock', 'mode', 'token', 'holders', 'waiters'],
      locks.locks.slice(0, 200).map(lock => [lock.name, lock.mode, lock.token,
        lock.holders.map(one => one.client).join(', '), lock.waiters.length]));
  } catch (error) {
    $('state').textContent = 'no answer';
    $('state').className = 'bad';
  }
}
$('ask').addEventListener('submit', event => {
  event.preventDefault();
  token = $('token').value;
  $('ask').hidden = true;
  show();
});
show();
setInterval(show, 2000);
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>coterie</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>coterie: <span id="state">…</span></h1>
<form id="ask" hidden><label>Token: <input id="token" type="password" autocomplete="off"></label>
<button>Show</button></form>
<table id="health"></table>
<h2>Locks</h2>
<table id="locks"></table>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
