"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif";
  const seconds = (v) => (v > 0 ? "+" : v < 0 ? "−" : "") + Math.abs(+v.toFixed(3)) + " s";
  const plain = (v) => (v == null ? "–" : v >= 100 ? Math.round(v).toString() : (+v.toFixed(1)).toString());
  let charts = [];
  let theme = {};

  function readTheme() {
    for (const name of ["ink", "soft", "line", "grid", "card", "writes", "reads", "slow", "bad", "stall", "on-phase"])
      theme[name] = colour(name);
    theme.phases = data.phases.map((p) => colour("p" + p.number));
  }

  // Phases: a band for each, and its number above the plot, moved aside where bands are narrow.
  function drawPhases(u, withNumbers) {
    const { ctx, bbox } = u;
    const px = devicePixelRatio;
    const x = (s) => Math.min(Math.max(u.valToPos(s, "x", true), bbox.left), bbox.left + bbox.width);
    ctx.save();
    if (!data.phases.length && data.stall) {
      ctx.globalAlpha = 0.18;
      ctx.fillStyle = theme.stall;
      ctx.fillRect(x(data.stall[0]), bbox.top, x(data.stall[1]) - x(data.stall[0]), bbox.height);
    }
    data.phases.forEach((p, i) => {
      if (p.ms <= 0) return;
      ctx.globalAlpha = 0.42;
      ctx.fillStyle = theme.phases[i];
      ctx.fillRect(x(p.from_s), bbox.top, Math.max(x(p.to_s) - x(p.from_s), px), bbox.height);
      ctx.globalAlpha = 0.7;
      ctx.fillRect(x(p.to_s) - px / 2, bbox.top, px, bbox.height);
    });
    ctx.globalAlpha = 1;
    if (withNumbers) drawNumbers(u, ctx, bbox, px, x);
    ctx.restore();
  }

  function drawNumbers(u, ctx, bbox, px, x) {
    const r = 9 * px, gap = 3 * px, y = bbox.top - 22 * px;
    const shown = data.phases.map((p, i) => ({ p, i, at: (x(p.from_s) + x(p.to_s)) / 2 })).filter((n) => n.p.ms > 0);
    if (!shown.length) return;
    const inView = shown.filter((n) => n.p.to_s >= u.scales.x.min && n.p.from_s <= u.scales.x.max);
    if (!inView.length) return;
    // Spread around their common middle, keeping order and distance.
    let xs = inView.map((n) => n.at);
    for (let k = 1; k < xs.length; k++) xs[k] = Math.max(xs[k], xs[k - 1] + 2 * r + gap);
    const shift = (xs.reduce((a, b) => a + b, 0) - inView.reduce((a, n) => a + n.at, 0)) / xs.length;
    xs = xs.map((v) => v - shift);
    const over = Math.max(0, bbox.left + r - xs[0]);
    xs = xs.map((v) => v + over);
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.font = "bold " + 11 * px + "px system-ui, 'DejaVu Sans', sans-serif";
    inView.forEach((n, k) => {
      ctx.strokeStyle = theme.soft;
      ctx.lineWidth = px;
      ctx.beginPath();
      ctx.moveTo(xs[k], y + r);
      ctx.lineTo(n.at, bbox.top);
      ctx.stroke();
      ctx.fillStyle = theme.phases[n.i];
      ctx.beginPath();
      ctx.arc(xs[k], y, r, 0, 2 * Math.PI);
      ctx.fill();
      ctx.fillStyle = theme["on-phase"];
      ctx.fillText(n.p.number, xs[k], y + px * 0.5);
    });
    ctx.font = 12 * px + "px system-ui, 'DejaVu Sans', sans-serif";
    ctx.fillStyle = theme.ink;
    const last = xs[xs.length - 1] + r + 8 * px;
    const text = data.stall_text;
    if (last + ctx.measureText(text).width < bbox.left + bbox.width) {
      ctx.textAlign = "left";
      ctx.fillText(text, last, y);
    }
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    const px = devicePixelRatio;
    ctx.save();
    ctx.font = 12 * px + "px system-ui, 'DejaVu Sans', sans-serif";
    ctx.textBaseline = "alphabetic";
    let taken = [-1e9, -1e9, -1e9];
    for (const m of data.marks) {
      const at = u.valToPos(m.at_s, "x", true);
      if (at < bbox.left - 1 || at > bbox.left + bbox.width + 1) continue;
      const width = ctx.measureText(m.label).width;
      const right = at + width + 6 * px > bbox.left + bbox.width;
      const from = right ? at - width - 5 * px : at + 5 * px;
      let row = taken.findIndex((end) => from > end + 6 * px);
      if (row < 0) row = 0;
      taken[row] = from + width;
      const top = bbox.top - (40 - 14 * row) * px;
      ctx.strokeStyle = theme.ink;
      ctx.lineWidth = px;
      ctx.setLineDash([3 * px, 3 * px]);
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, bbox.top + bbox.height);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.fillStyle = theme.ink;
      ctx.textAlign = "left";
      ctx.fillText(m.label, from, top + 10 * px);
    }
    ctx.restore();
  }

  function drawFailed(u) {
    const { ctx, bbox } = u;
    const px = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = theme.bad;
    ctx.lineWidth = 2 * px;
    data.close.failed.forEach((n, i) => {
      if (!n) return;
      const x = u.valToPos(data.close.at_s[i], "x", true), y = bbox.top + bbox.height - 9 * px, d = 4 * px;
      if (x < bbox.left || x > bbox.left + bbox.width) return;
      ctx.beginPath();
      ctx.moveTo(x - d, y - d); ctx.lineTo(x + d, y + d);
      ctx.moveTo(x + d, y - d); ctx.lineTo(x - d, y + d);
      ctx.stroke();
    });
    ctx.restore();
  }

  const axis = (extra) => Object.assign({
    stroke: () => theme.soft, font, grid: { stroke: () => theme.grid, width: 1 }, ticks: { stroke: () => theme.line, width: 1, size: 5 },
  }, extra);
  const xAxis = (label) => axis({ values: (u, ticks) => ticks.map(seconds), size: 34, space: 70, grid: { show: false }, label: null });
  const decades = (u, ticks) => ticks.map((v) => (Math.abs(Math.log10(v) % 1) < 1e-9 ? v : null));
  const stepped = uPlot.paths.stepped({ align: 1 });

  // A step from each bucket's beginning to its end.
  function steps(series) {
    const half = series.bucket_ms / 2000, last = series.at_s.length - 1;
    const whole = (ys) => [...ys, ys[last]];
    return [[...series.at_s.map((x) => x - half), series.at_s[last] + half], whole(series.writes_per_s), whole(series.reads_per_s)];
  }

  function readout(u) {
    const c = data.close, i = u.cursor.idx == null ? null : Math.min(Math.max(u.cursor.idx - 1, 0), c.at_s.length - 1);
    byId("readout").textContent = i == null ? "Point at a chart to read its figures." :
      `${seconds(c.at_s[i])}: ${plain(c.writes_per_s[i])} writes/s, ${plain(c.reads_per_s[i])} reads/s, ` +
      `middle wait ${plain(c.latency_p50_ms[i])} ms, longest ${plain(c.latency_max_ms[i])} ms` +
      (c.failed[i] ? `, ${c.failed[i]} not acknowledged` : "");
  }

  function build() {
    charts.forEach((u) => u.destroy());
    charts = [];
    readTheme();
    const width = (id) => Math.max(260, byId(id).clientWidth);
    const close = data.close, whole = data.whole;
    const sync = { key: "close" };
    const common = { legend: { show: false }, cursor: { sync, points: { size: 7 }, y: false, drag: { x: true, y: false } } };
    const closeSteps = steps(close), xs = closeSteps[0];
    const range = [xs[0], xs[xs.length - 1]];
    const fill = (name, alpha) => name + alpha;
    charts.push(new uPlot({
      ...common, width: width("throughput"), height: 270, padding: [44, 20, 0, 0],
      scales: { x: { time: false, range: (u, a, b) => [a ?? range[0], b ?? range[1]] }, y: { range: (u, a, b) => [0, Math.max(10, b * 1.12)] } },
      axes: [xAxis(), axis({ size: 46 })],
      series: [{}, { stroke: theme.writes, width: 2.25, fill: fill(theme.writes, "22"), paths: stepped, points: { show: false } },
        { stroke: theme.reads, width: 1.75, dash: [6, 5], points: { show: false } }],
      hooks: { drawAxes: [(u) => drawPhases(u, true)], draw: [drawFailed] },
    }, closeSteps, byId("throughput")));
    charts.push(new uPlot({
      ...common, width: width("latency"), height: 200, padding: [8, 20, 0, 0],
      scales: { x: { time: false, range: (u, a, b) => [a ?? range[0], b ?? range[1]] }, y: { distr: 3, log: 10 } },
      axes: [xAxis(), axis({ size: 46, filter: decades, grid: { stroke: () => theme.grid, width: 1, filter: decades },
        values: (u, ticks) => ticks.map((v) => (v == null ? "" : String(v))) })],
      series: [{}, { stroke: theme.writes, width: 2, points: { show: false } },
        { stroke: theme.slow, width: 1.25, dash: [2, 3], points: { show: true, size: 5, fill: theme.slow } }],
      hooks: { drawAxes: [(u) => drawPhases(u, false)], setCursor: [readout] },
    }, [[range[0], ...close.at_s, range[1]], [null, ...close.latency_p50_ms, null], [null, ...close.latency_max_ms, null]], byId("latency")));
    charts.push(new uPlot({
      legend: { show: false }, cursor: { show: false }, width: width("overview"), height: 190, padding: [44, 20, 0, 0],
      scales: { x: { time: false }, y: { range: (u, a, b) => [0, Math.max(10, b * 1.12)] } },
      axes: [xAxis(), axis({ size: 46 })],
      series: [{}, { stroke: theme.writes, width: 2, fill: fill(theme.writes, "22"), paths: stepped, points: { show: false } },
        { stroke: theme.reads, width: 1.5, dash: [6, 5], points: { show: false } }],
      hooks: { drawAxes: [(u) => drawPhases(u, false)], draw: [drawMarks] },
    }, steps(whole), byId("overview")));
  }

  let pending = 0;
  const rebuild = () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(build); };
  build();
  readout(charts[1]);
  addEventListener("resize", rebuild);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  addEventListener("beforeprint", build);
})();
