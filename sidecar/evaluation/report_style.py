"""Look of the report. Colours are variables, so that charts follow the reader's light or dark."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1d1f21; --dim: #63686e; --line: #e0e0dc;
  --accent: #2a6fb0; --soft: #d6e4f2; --good: #1f7a4d; --bad: #b3362d; --warn: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1e2125; --ink: #e6e7e9; --dim: #9aa1a9; --line: #34393f;
    --accent: #6fb1ec; --soft: #2b4159; --good: #5cc690; --bad: #f08a80; --warn: #e0b055;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 0 0 4px; }
p { margin: 0 0 12px; }
.dim { color: var(--dim); }
.note { color: var(--dim); font-size: 13.5px; }
.below { margin-top: 16px; }
.warn { color: var(--warn); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 20px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px;
  margin-top: 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 13px; color: var(--dim); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  column-gap: 18px; }
.pair > section { min-width: 0; }
.wide { overflow-x: auto; }
.wide + .wide { margin-top: 18px; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--dim); font-size: 13px; white-space: nowrap; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; white-space: nowrap; }
tr.total td { font-weight: 600; }
td.name { overflow-wrap: break-word; min-width: 7em; }
td.bar { width: 40%; min-width: 110px; }
.miss td.bar { width: 24%; min-width: 80px; }
.track { position: relative; height: 12px; background: var(--soft); border-radius: 3px;
  overflow: hidden; }
.track i { position: absolute; inset: 0 auto 0 0; background: var(--accent); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
.axis { stroke: var(--line); } .ideal { stroke: var(--dim); stroke-dasharray: 4 4; }
.curve { stroke: var(--accent); stroke-width: 2; fill: none; }
.dot { fill: var(--accent); } .gap { stroke: var(--bad); stroke-width: 1.5; }
.count { fill: var(--accent); opacity: .55; }
.matrix td, .matrix th { text-align: center; padding: 3px 5px; border: 1px solid var(--line);
  font-size: 12.5px; }
.matrix th { max-width: 9em; white-space: normal; overflow-wrap: break-word; font-weight: 500; }
.matrix th.row { text-align: right; }
details { border-bottom: 1px solid var(--line); padding: 12px 0; }
details:last-of-type { border-bottom: 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
.miss { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 18px; margin-top: 10px; }
.miss > * { min-width: 0; }
.say { border-left: 3px solid var(--line); padding-left: 10px; margin: 0 0 8px;
  overflow-wrap: anywhere; white-space: pre-wrap; font-size: 14px; }
.say.user { border-color: var(--accent); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""
