"""The style sheet of the page, light or dark as the reader's system is."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6672; --paper: #ffffff; --line: #d5dae0; --bar: #2a6694; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3adb8; --paper: #14181d; --line: #39424c; --bar: #74a4b6; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 3rem; border-top: 1px solid var(--line);
  padding-top: 1rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
a { color: inherit; } .soft, caption { color: var(--soft); }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem .7rem; vertical-align: top; }
.wide { overflow-x: auto; } .wide > table { width: 100%; }
.wide > table td, .wide > table th { border-bottom: 1px solid var(--line); }
td small { display: block; color: var(--soft); } td.bars { width: 18%; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.facets { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.map caption { text-align: left; padding-bottom: .2rem; }
.map td { min-width: 5.2rem; text-align: center; border: 2px solid var(--paper); font-size: .85rem;
  font-variant-numeric: tabular-nums; }
.map th[scope=row] { text-align: right; } .map small { color: inherit; }
.map td.untimed { color: var(--soft); border: 1px dashed var(--line); }
.map td.empty { background: none; }
.map td.failed { color: var(--ink); border: 2px dotted var(--ink); }
.map td.winner { outline: 3px solid #d95f0e; outline-offset: -3px; font-weight: 700; }
.scale span { display: inline-block; padding: .1rem .6rem; font-size: .8rem; }
.bar { display: block; height: .8rem; min-width: 1px; background: var(--bar); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
