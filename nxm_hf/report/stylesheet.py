"""The style sheet of the page: light and dark, from 400 pixels up."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f7f7f5; --ink: #1c1d1f; --dim: #5c6066; --rule: #dcdcd6;
  --c0: #0b62a4; --c1: #c2500a; --c2: #0a7d5a; --c3: #a4408a; --c4: #8a6d00; --c5: #4d5560; --good: #0a7040;
  --bad: #b3261e; --shade: #1c1d1f40; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --card: #1f2226; --ink: #e9e9e6; --dim: #a3a8b0; --rule: #383c42;
    --c0: #6fb3ef; --c1: #f59a5c; --c2: #4fcf9f; --c3: #e28fce; --c4: #e0c252; --c5: #b4bcc8; --good: #5fd39a;
    --bad: #ff8a80; --shade: #ffffff50; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 1360px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 24px; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
header p { margin: 4px 0 0; color: var(--dim); }
h2 { margin: 32px 0 12px; padding-bottom: 4px; font-size: 19px; border-bottom: 1px solid var(--rule); }
h3 { margin: 16px 0 8px; font-size: 15px; overflow-wrap: anywhere; }
a { color: var(--c0); }
.cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.sides { display: flex; flex-wrap: wrap; gap: 0 24px; }
.sides > div { min-width: 0; max-width: 100%; }
figure { margin: 0; padding: 12px 14px; min-width: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { margin-bottom: 6px; font-weight: 600; overflow-wrap: anywhere; }
.note, .none { color: var(--dim); font-size: 13.5px; overflow-wrap: anywhere; }
.note { margin: 6px 0 0; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
svg.chart { display: block; width: 100%; height: auto; }
svg.mask { display: block; width: 100%; max-width: 400px; height: auto; }
svg.spark { width: 80px; height: 20px; vertical-align: middle; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); font-variant-numeric: tabular-nums; }
svg text.axis { fill: var(--ink); }
.grid { stroke: var(--rule); fill: none; }
.base { stroke: var(--dim); fill: none; }
.mark { stroke: var(--dim); stroke-dasharray: 4 3; fill: none; }
.mark.c0 { stroke: var(--c0); } .mark.c1 { stroke: var(--c1); } .mark.c2 { stroke: var(--c2); }
.mark.c3 { stroke: var(--c3); } .mark.c4 { stroke: var(--c4); } .mark.c5 { stroke: var(--c5); }
svg text.marked.c0 { fill: var(--c0); } svg text.marked.c1 { fill: var(--c1); } svg text.marked.c2 { fill: var(--c2); }
svg text.marked.c3 { fill: var(--c3); } svg text.marked.c4 { fill: var(--c4); } svg text.marked.c5 { fill: var(--c5); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.bars { stroke-width: 1.5; fill-opacity: .3; }
.mask .paper { fill: var(--paper); }
.mask .kept { fill: var(--c0); }
.mask .groups { stroke: var(--dim); stroke-width: .08; opacity: .6; }
.line.c0, .bars.c0 { stroke: var(--c0); } .dot.c0, .bars.c0 { fill: var(--c0); }
.line.c1, .bars.c1 { stroke: var(--c1); } .dot.c1, .bars.c1 { fill: var(--c1); }
.line.c2, .bars.c2 { stroke: var(--c2); } .dot.c2, .bars.c2 { fill: var(--c2); }
.line.c3, .bars.c3 { stroke: var(--c3); } .dot.c3, .bars.c3 { fill: var(--c3); }
.line.c4, .bars.c4 { stroke: var(--c4); } .dot.c4, .bars.c4 { fill: var(--c4); }
.line.c5, .bars.c5 { stroke: var(--c5); } .dot.c5, .bars.c5 { fill: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 0; padding: 0; list-style: none;
  font-size: 13.5px; }
.legend li { overflow-wrap: anywhere; }
.legend svg { width: 24px; height: 10px; margin-right: 6px; }
details { margin-top: 8px; font-size: 13px; }
details summary { color: var(--dim); cursor: pointer; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; width: fit-content;
  max-width: 100%; background:
    linear-gradient(to right, var(--paper) 40%, transparent) left / 48px 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 48px 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 16px 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 16px 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { white-space: normal; vertical-align: bottom; border-bottom: 2px solid var(--rule); }
tbody th { font-weight: 500; }
#summary td, #settings td, #environment td, #flops td { white-space: normal; overflow-wrap: anywhere; }
.bar { display: inline-block; width: 160px; height: 10px; background: var(--rule); border-radius: 5px;
  overflow: hidden; vertical-align: middle; }
.bar span { display: block; height: 100%; background: var(--c0); }
#layers .bar { width: 64px; }
.papers { padding-left: 20px; }
@media (min-width: 601px) { wbr { display: none; } }
@media (max-width: 600px) {
  th, td { padding: 5px 8px; }
  tbody th { min-width: 110px; white-space: normal; overflow-wrap: anywhere; }
  .bar { width: 44px; }
}
@media print { .scroll { overflow: visible; } figure, tr { break-inside: avoid; } }
"""
