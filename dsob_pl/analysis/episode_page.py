"""An explained episode as a page to scrub through: one file, no network."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from dsob_pl.agents.calibration import LARGEST_REST
from dsob_pl.analysis.episode_figure import coverage_line
from dsob_pl.analysis.html import document

if TYPE_CHECKING:
    from dsob_pl.analysis.episode import ExplainedEpisode

_SCRIPT = """
const data = JSON.parse(document.getElementById('episode').textContent), T = data.mean.length;
const NS = 'http://www.w3.org/2000/svg', slider = document.getElementById('step');
const make = (svg, tag, attributes) => { const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); svg.append(e); return e; };
const range = values => { let a = Infinity, b = -Infinity;  // not Math.min(...v), which takes some 100,000 arguments
  for (const v of values.flat(2)) if (Number.isFinite(v)) { a = Math.min(a, v); b = Math.max(b, v); }
  return a < b ? [a, b] : [a - 1, b + 1]; };
const scale = ([a, b], from, to) => v => from + (v - a) / (b - a) * (to - from);
const path = points => 'M' + points.map(p => p[0].toFixed(1) + ',' + p[1].toFixed(1)).join('L');
const text = (svg, x, y, words, anchor = 'start') => { make(svg, 'text', { x, y, 'font-size': 11, fill: 'currentColor',
  'text-anchor': anchor }).textContent = words; };
const short = v => Number(v).toPrecision(4);

const fan = document.getElementById('fan'), W = 880, H = 300;
const span = range([data.quantiles, data.realised]);
const x = scale([0, Math.max(1, T - 1)], 50, W - 10), y = scale(span, H - 25, 10);
[['#8fb3d6', .35], ['#8fb3d6', .45], ['#8fb3d6', .6]].forEach(([color, opacity], i) => {
  const low = data.quantiles.map((q, t) => [x(t), y(q[i])]);
  const high = data.quantiles.map((q, t) => [x(t), y(q[6 - i])]).reverse();
  make(fan, 'path', { d: path([...low, ...high]) + 'Z', fill: color, 'fill-opacity': opacity }); });
const line = (values, color, dash = '') => make(fan, 'path', { d: path(values.map((v, t) => [x(t), y(v)])),
  fill: 'none', stroke: color, 'stroke-width': 1.5, 'stroke-dasharray': dash });
line(data.quantiles.map(q => q[3]), '#1f5a96'); line(data.cvar, '#7a5bb5', '2 3'); line(data.realised, '#c8553d');
if (data.seen < T) make(fan, 'rect', { x: x(data.seen), y: 10, width: W - 10 - x(data.seen), height: H - 35,
  fill: 'currentColor', 'fill-opacity': .06 });
for (const v of span) text(fan, 46, y(v) + 4, short(v), 'end');
text(fan, 50, H - 8, '0'); text(fan, W - 10, H - 8, 'step ' + (T - 1), 'end');
const cursor = make(fan, 'line', { y1: 10, y2: H - 25, stroke: 'currentColor', 'stroke-width': 1 });

const law = document.getElementById('law'), BINS = 30, LW = 430, LH = 300;
const all = range([data.samples, data.realised]), lx = scale(all, 10, LW - 10);
const field = document.getElementById('field'), FW = 430, margin = 30;
function drawLaw(t) {
  law.replaceChildren();
  const counts = new Array(BINS).fill(0);
  for (const v of data.samples[t]) counts[Math.min(BINS - 1, Math.floor((v - all[0]) / (all[1] - all[0]) * BINS))]++;
  const tall = scale([0, Math.max(...counts)], 0, LH - 60);
  counts.forEach((n, i) => make(law, 'rect', { x: 10 + i * (LW - 20) / BINS, y: LH - 30 - tall(n),
    width: (LW - 20) / BINS - 1, height: tall(n), fill: '#8fb3d6' }));
  for (const [v, color] of [[data.mean[t], '#1f5a96'], [data.cvar[t], '#7a5bb5'], [data.realised[t], '#c8553d']])
    make(law, 'line', { x1: lx(v), x2: lx(v), y1: 15, y2: LH - 30, stroke: color, 'stroke-width': 2 });
  text(law, 10, LH - 12, short(all[0])); text(law, LW - 10, LH - 12, short(all[1]), 'end'); }
function drawField(t) {
  if (!data.field) return;
  field.replaceChildren();
  let i = 0; while (i + 1 < data.field.steps.length && data.field.steps[i + 1] <= t) i++;
  const axis = data.field.axis, n = axis.length, p = scale([-1, 1], margin, FW - margin), q = v => FW - p(v);
  const shade = scale(range(data.field.mean[i]), .05, .85), cell = (FW - 2 * margin) / (n - 1);
  const most = Math.max(...data.field.gradient[i].flat().map(g => Math.hypot(...g)), 1e-12);
  const tail = Math.max(...data.field.cvar_gradient[i].flat().map(g => Math.hypot(...g)), 1e-12);
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) {
    const cx = p(axis[a]), cy = q(axis[b]);
    make(field, 'rect', { x: cx - cell / 2, y: cy - cell / 2, width: cell, height: cell, fill: '#1f5a96',
      'fill-opacity': shade(data.field.mean[i][a][b]) });
    for (const [g, longest, color] of [[data.field.gradient[i][a][b], most, 'currentColor'],
                                      [data.field.cvar_gradient[i][a][b], tail, '#b294f0']])
      make(field, 'line', { x1: cx, y1: cy, x2: cx + g[0] / longest * cell * .9, y2: cy - g[1] / longest * cell * .9,
        stroke: color, 'stroke-width': 1.5 }); }
  make(field, 'circle', { cx: p(data.actions[t][0]), cy: q(data.actions[t][1]), r: 5, fill: '#c8553d' }); }
function show() {
  const t = +slider.value;
  cursor.setAttribute('x1', x(t)); cursor.setAttribute('x2', x(t));
  drawLaw(t); drawField(t);
  document.getElementById('numbers').textContent = `step ${t}: realised ${short(data.realised[t])}, mean `
    + `${short(data.mean[t])}, CVaR 0.1 ${short(data.cvar[t])}, critics disagree by ${short(data.disagreement[t])}, `
    + `reward ${short(data.rewards[t])}, action (${data.actions[t].map(short).join(', ')})`; }
slider.max = T - 1; slider.addEventListener('input', show);
fan.addEventListener('pointermove', e => { if (e.buttons || e.pointerType === 'mouse') {
  const box = fan.getBoundingClientRect(), at = (e.clientX - box.left) / box.width * W;
  slider.value = Math.round((at - 50) / (W - 60) * (T - 1)); show(); } });
show();
"""


def episode_page(episode: ExplainedEpisode, title: str) -> str:
    """The page: the fan chart with a cursor, the law at its step, and the field of actions where there is one."""
    # "</" cannot end the element early; numbers that are not finite are not JSON.
    data = json.dumps(_data(episode), allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    field = (
        '<figure><svg id="field" viewBox="0 0 430 430" width="430"></svg><figcaption>mean return over the two action '
        "components; lines: dG/da, violet that of CVaR 0.1, each scaled to its longest; dot: the action taken"
        "</figcaption></figure>"
        if episode.field is not None
        else ""
    )
    end = "terminated" if episode.terminated else "was cut off; the shaded part rests on what was predicted at its end"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{len(episode.rewards)} steps, the episode {end}. {escape(coverage_line(episode))}.</p>',
        '<figure><svg id="fan" viewBox="0 0 880 300" width="880"></svg><figcaption>return from each step on: 50, 80 '
        "and 95 % intervals of the predicted law, median (blue), CVaR 0.1 (violet, dotted), realised (red)"
        "</figcaption></figure>",
        '<p><input id="step" type="range" min="0" value="0" style="width: 100%" aria-label="step"></p>',
        '<p id="numbers"></p>',
        '<div style="display: flex; flex-wrap: wrap; gap: 1.5rem">',
        '<figure><svg id="law" viewBox="0 0 430 300" width="430"></svg><figcaption>predicted law at this step; mean '
        "(blue), CVaR 0.1 (violet), realised (red)</figcaption></figure>",
        field,
        "</div>",
        f'<script id="episode" type="application/json">{data}</script>',
        f"<script>{_SCRIPT}</script>",
    ]
    return document(title, body)


def _data(episode: ExplainedEpisode) -> dict[str, Any]:
    names = ("actions", "rewards", "realised", "quantiles", "mean", "cvar", "disagreement", "samples")
    data: dict[str, Any] = {name: _rounded(getattr(episode, name)) for name in names}
    data["seen"] = int((episode.rest <= LARGEST_REST).sum())  # the rest grows with the steps
    if episode.field is not None:
        data["field"] = {name: _rounded(value) for name, value in episode.field._asdict().items()}
    return data


def _rounded(values: np.ndarray) -> Any:
    """As lists, with five digits, which are more than a screen shows."""
    if np.issubdtype(values.dtype, np.integer):
        return values.tolist()
    size = np.abs(values).max(initial=0.0)
    return np.round(values.astype(float), 0 if size == 0 else max(0, 5 - int(np.ceil(np.log10(size))))).tolist()
