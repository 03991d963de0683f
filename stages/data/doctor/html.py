"""The page of the data doctor, as a Jinja template: part of the code, so that its key covers it.

It loads nothing from anywhere: no script, no font, no picture. Light and dark follow the reader.
"""

TEMPLATE = """\
{% macro grid(splits, rows) %}
<div class="card scroll">
<table>
<thead><tr><th></th>{% for name in splits %}<th class="n">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for label, counts in rows %}
<tr><th>{{ label }}</th>
{%- for count in counts %}<td class="n">{{ count }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro counts(rows) %}
<div class="card scroll">
<table>
<tbody>
{% for label, count in rows %}
<tr><td>{{ label }}</td><td class="n">{{ count | n }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Data doctor</title>
<style>
:root {
  --ground: #f7f6f3; --card: #fff; --text: #1c1d20; --soft: #66676d; --line: #e4e2dc;
  --bar: #4a7fa5; --rest: #a9c3d6; --mark: #d3ecd9; --warn: #b7791f; --good: #3d8b5a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15171a; --card: #1d2024; --text: #e6e6e9; --soft: #9b9da5; --line: #31353b;
    --bar: #6ba3cb; --rest: #3d5b72; --mark: #1d4a33; --warn: #d9a441; --good: #6cc08b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.5rem 4rem; background: var(--ground);
  color: var(--text); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { margin: 0; font-size: 1.7rem; letter-spacing: -.01em; }
h2 { margin: 2.6rem 0 .8rem; font-size: 1.1rem; }
p { margin: .6rem 0; max-width: 46rem; }
.soft, figcaption, dt, th { color: var(--soft); font-weight: 400; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
}
.scroll { overflow-x: auto; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.facts { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); margin-top: 1.5rem; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 600; }
.facts b, td, text { font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .87rem; }
.advice { list-style: none; margin: 1.2rem 0 0; padding: 0; }
.advice li {
  background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--warn);
  border-radius: 6px; margin-top: .5rem; padding: .5rem .9rem; overflow-wrap: anywhere;
}
.advice .good { border-left-color: var(--good); }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .32rem .9rem .32rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.n {
  text-align: right; white-space: nowrap; width: 1%; min-width: 5.5rem;
  padding-right: 0; padding-left: .9rem;
}
td { overflow-wrap: anywhere; }
code, pre, .digest { font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.4rem; margin: 0; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
figure { margin: 0; }
figcaption { font-size: .87rem; margin-bottom: .6rem; }
figcaption b { color: var(--text); font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg line { stroke: var(--line); }
svg rect { fill: var(--bar); }
svg .rest { fill: var(--rest); }
pre {
  margin: .7rem 0 0; max-height: 26rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: plaintext;
}
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: .1em 0; }
.legend mark { color: var(--text); padding: .1em .4em; }
i { color: var(--soft); font-style: normal; opacity: .75; user-select: none; }
article { margin-top: 1rem; }
details { margin-top: .6rem; }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 34rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .card { padding: .8rem .9rem; }
  .n { min-width: 0; padding-left: .7rem; }
  .facts { grid-template-columns: 1fr 1fr; gap: .6rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
</style>
</head>
<body>
<header>
<h1>Data doctor</h1>
<p class="soft">{{ f.kind }} data, as prepared for training</p>
</header>

<section class="grid facts">
{% for value, name in facts %}
<div class="card"><b>{{ value }}</b><span>{{ name }}</span></div>
{% endfor %}
</section>

<ul class="advice">
{% for line in advice %}
<li>{{ line }}</li>
{% else %}
<li class="good">Nothing was found that needs a look.</li>
{% endfor %}
</ul>

<h2>Splits</h2>
{{ grid(f.splits, split_rows) }}

<h2>Lengths</h2>
<div class="grid">
{% for chart in charts %}
<figure class="card">
<figcaption><b>{{ chart.name }}</b> · rows by tokens
{%- if chart.rest %}, the last bar holds all longer ones{% endif %}</figcaption>
<svg viewBox="0 0 {{ chart.width }} {{ chart.height }}" role="img"
 aria-label="Histogram of the lengths of {{ chart.name }}">
{% for y, label in chart.levels %}
<line x1="{{ chart.left }}" x2="{{ chart.width }}" y1="{{ y }}" y2="{{ y }}"></line>
<text x="{{ chart.left - 6 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
{% for bar in chart.bars %}
<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}" rx="1"
{%- if bar.rest %} class="rest"{% endif %}><title>{{ bar.title }}</title></rect>
{% endfor %}
{% for x, anchor, label in chart.ticks %}
<text x="{{ x }}" y="{{ chart.height - 4 }}" text-anchor="{{ anchor }}">{{ label }}</text>
{% endfor %}
</svg>
</figure>
{% endfor %}
</div>

<h2>Examples</h2>
<p class="legend soft"><mark>Highlighted text</mark> is what the model learns to write; the rest is
what it reads. <i>↵</i> is a line break.</p>
{% for example in examples %}
<article class="card">
<div class="soft">{{ example.source }} · {{ example.tokens | n }} tokens,
{{ example.supervised_tokens | n }} supervised</div>
<pre>
{%- for lines, supervised in example.pieces %}
{%- if supervised %}<mark>{% endif %}
{%- for line in lines %}{{ line }}{% if not loop.last %}<i>↵</i>
{% endif %}{% endfor %}
{%- if supervised %}</mark>{% endif %}
{%- endfor %}</pre>
</article>
{% endfor %}

<h2>Repeated rows and leaks</h2>
{% if repeated_rows %}
{{ grid(f.splits, repeated_rows) }}
{% else %}
<p>No row repeats another, and no held-out row is asked in train.</p>
{% endif %}
<p class="soft">Texts are compared stripped and in lower case. Near-duplicates were searched among
{{ f.near.searched | n }} of {{ f.near.rows | n }} rows, by the words of their questions.</p>
{% if f.near.examples %}
<div class="card scroll">
<table>
<thead><tr><th>row</th><th>asks nearly what this one asks</th><th class="n">alike</th></tr></thead>
<tbody>
{% for one, other, similarity in f.near.examples %}
<tr><td>{{ one }}</td><td>{{ other }}</td><td class="n">{{ "%.2f" | format(similarity) }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}

{% if notes %}
<h2>Rows changed or left out</h2>
{{ counts(notes) }}
{% endif %}

<h2>Private data</h2>
{% if private %}
{{ counts(private) }}
<p class="soft">{{ "All were replaced in the prepared rows." if f.redacted else
"They are in the prepared rows: data.redact=true replaces them." }}</p>
{% else %}
<p>No e-mail address and no likely secret.</p>
{% endif %}

{% if f.repairs %}
<h2>Encoding</h2>
{{ counts(f.repairs.items()) }}
<p class="soft">Bytes that are no UTF-8 and were read as Windows-1252.</p>
{% endif %}

{% if f.faults %}
<h2>Records that cannot be used</h2>
<p class="soft">{{ f.faults | length | n }} of {{ f.fault_count | n }}; all are in
quarantine.jsonl.</p>
<div class="card scroll">
<table>
<thead><tr><th>where</th><th>what</th><th>what to do</th></tr></thead>
<tbody>
{% for fault in f.faults %}
<tr><td>{{ fault.where }}</td><td>{{ fault.found }}</td><td>{{ fault.mend }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}

<h2>Sources</h2>
<div class="card">
{% for source in f.sources %}
<details{% if source.files | length <= 20 %} open{% endif %}>
<summary><code>{{ source.path }}</code>
{%- if source.weight is not none %} · weight {{ source.weight }}{% endif %}
{%- if source.revision %} · commit <span class="digest">{{ source.revision }}</span>{% endif %}
</summary>
<div class="scroll">
<table>
<thead><tr><th>file</th><th>split</th><th class="n">records</th></tr></thead>
<tbody>
{% for file in source.files %}
<tr><td>{{ file.name }}</td><td>{{ file.split }}</td><td class="n">{{ file.records | n }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% endfor %}
{% if f.passed_over %}
<p class="soft">Passed over: {{ f.passed_over | join(", ") }}</p>
{% endif %}
<p class="soft">Formats: {{ formats }}</p>
</div>

<h2>Template, tokenizer, settings</h2>
<div class="card">
<dl>
{% for name, value in identity %}
<dt>{{ name }}</dt><dd><code>{{ value }}</code></dd>
{% endfor %}
</dl>
{% if f.template and f.template.treatments %}
<ul>
{% for sentence in f.template.treatments %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% endif %}
</div>
</body>
</html>
"""
