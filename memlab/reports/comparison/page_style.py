"""The style of the comparison page: light or dark as the system is, light on paper, cards if narrow."""

from __future__ import annotations

from memlab.reports.comparison.canvas import PALETTE

# the same hues, lighter
_ON_DARK = ("#4AA3DF", "#F07F3C", "#2FBF96", "#DB93BC", "#8CCBF2", "#F2B63D", "#A6A6A6")
_LIGHT = "--ink:#1b1b1b;--soft:#5a5a5a;--paper:#ffffff;--card:#f6f6f4;--grid:#d0d0d0;" + "".join(
    f"--c{i}:{colour};" for i, colour in enumerate(PALETTE)
)
_DARK = "--ink:#e8e8e6;--soft:#a8a8a6;--paper:#16181b;--card:#202327;--grid:#3a3e44;" + "".join(
    f"--c{i}:{colour};" for i, colour in enumerate(_ON_DARK)
)
STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    f"@media print{{:root{{{_LIGHT}}}}}"
    + """
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:0}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem}h3{font-size:1rem;margin:2rem 0 .25rem}
header p,.note,figcaption{color:var(--soft);font-size:.875rem;margin:.5rem 0}
.verdict{font-size:1.05rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th{font-weight:600;white-space:nowrap}.number{text-align:right;white-space:nowrap}
td:first-child{font-weight:600}
td[data-head="each seed"]{min-width:8rem}td[data-head="command"]{min-width:16rem}
code,pre{font:.8125rem/1.45 ui-monospace,monospace}
pre{background:var(--card);padding:.75rem;border-radius:.4rem;white-space:pre-wrap;margin:.5rem 0}
.legend{list-style:none;padding:0;margin:1.5rem 0 .5rem;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
.legend li{display:flex;align-items:center;gap:.4rem}.legend svg{width:2.4rem;height:1.2rem;flex:none}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.25rem}
figure{margin:0;background:var(--card);border-radius:.5rem;padding:.75rem}
figure svg{width:100%;height:auto;display:block}
.plain{padding-left:1.1rem;font-size:.875rem}
@media screen and (max-width:48rem){
 thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
 table,tbody,tr,td{display:block}
 tr{background:var(--card);border-radius:.5rem;padding:.5rem .75rem;margin:0 0 .75rem}
 td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.15rem 0;
  text-align:right;white-space:normal}
 td::before{content:attr(data-head);color:var(--soft);font-weight:400;text-align:left;flex:none;max-width:45%}
 td:first-child{font-size:1rem;text-align:left}td:first-child::before{content:none}
 td[data-head="command"],td[data-head="run"],td[data-head="not as the others"]{display:block;text-align:left}
 td[data-head="command"]::before,td[data-head="run"]::before,td[data-head="not as the others"]::before{
  display:block;max-width:none}
 td[data-head="each seed"],td[data-head="command"]{min-width:0}
}
@media print{
 @page{margin:14mm}
 body{max-width:none;padding:0;font-size:10pt}table{font-size:7.5pt}
 th,td{padding:.2rem .3rem}.number,th{white-space:normal}
 td[data-head="each seed"],td[data-head="command"]{min-width:0}
 figure,tr{break-inside:avoid}h2,h3{break-after:avoid}figure{border:1px solid var(--grid);background:none}
 .scroll{overflow:visible}.figures{grid-template-columns:1fr 1fr}
}
"""
)
