"use strict";
/* What a reader can do on compare.html (written by pipeline/compare/html.py, which embeds this file):

   - show, hide, filter and sort the rows of the results table; curves and bars follow;
   - read, smooth and zoom the curves, with the mouse or the keyboard; published curves are wide and grey, behind them.

   The numbers come from the JSON in the element "data" (pipeline/compare/page_data.py). Text from runs is inserted as
   text nodes, never as HTML. uPlot draws axes and the cursor; the curves are drawn here, since uPlot needs one x array
   for all of its series and each run has its own. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const CHART_HEIGHT = 280; // CSS pixels
const TOOLTIP_ROWS = 8;
const SHOWN_AT_FIRST = 4; // charts

const state = {
  axis: DATA.against,
  smoothing: 0, // weight of the past in an exponential moving average, 0 to 0.99
  log: false,
  zoom: null, // [from, to] on the x axis, for all charts
  metrics: new Set(DATA.metrics.slice(0, SHOWN_AT_FIRST).map((metric) => metric.name)),
  hidden: new Set(), // indices of rows whose checkbox is off
  filter: "",
  focus: null, // index of the highlighted row
};
let charts = [];
let colours = new Map(); // shown row -> index of its colour, -1 for grey
let palette = {}; // CSS colours by index

/* ---- small helpers ---- */

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const PLAIN = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

function format(value, percent) {
  if (percent) return `${Number((100 * value).toFixed(2))}%`;
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size >= 1e5 ? SHORT.format(value) : PLAIN.format(value);
}

/* Exponential moving average with Adam's bias correction, so that it begins at the first value. */
function smooth(values, weight) {
  if (!weight) return values;
  let average = 0, total = 0;
  return values.map((value) => {
    average = weight * average + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return average / total;
  });
}

/* Index of the value in the sorted array that is nearest to x. */
function nearest(sorted, x) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle; else high = middle;
  }
  return x - sorted[low] <= sorted[high] - x ? low : high;
}

/* ---- rows: which are shown, and in which colour ---- */

const tableRows = [...document.querySelectorAll("tr[data-row]")];
const searched = new Map(); // row -> its text in all tables
for (const line of tableRows) {
  const row = Number(line.dataset.row);
  searched.set(row, `${searched.get(row) ?? ""} ${line.textContent.toLowerCase()}`);
}

function matches(row) {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => searched.get(row).includes(word));
}

function shown() {
  return DATA.rows.map((_, row) => row).filter((row) => !state.hidden.has(row) && matches(row));
}

/* The best rows keep their colours; while few rows are shown, the others take the free ones. */
function chooseColours() {
  const rows = shown();
  const found = new Map(rows.map((row) => [row, DATA.rows[row].colour]));
  if (rows.length <= DATA.dashes.length) {
    const free = DATA.dashes.map((_, index) => index).filter((index) => ![...found.values()].includes(index));
    for (const row of rows) if (found.get(row) < 0) found.set(row, free.shift());
  }
  return found;
}

function showRows() {
  colours = chooseColours();
  for (const line of document.querySelectorAll("[data-row]")) {
    const row = Number(line.dataset.row);
    const inTable = line.tagName === "TR";
    line.hidden = inTable ? !matches(row) : !colours.has(row);
    const index = colours.get(row) ?? -1;
    line.style.setProperty("--c", index < 0 ? "var(--others)" : `var(--c${index})`);
    line.classList.toggle("off", !colours.has(row));
    const stroke = line.querySelector(".swatch line");
    if (stroke) stroke.setAttribute("stroke-dasharray", index < 0 ? "" : DATA.dashes[index].join(" "));
    const box = line.querySelector("input[type=checkbox]");
    if (box) box.checked = !state.hidden.has(row);
  }
  document.getElementById("count").textContent = `${colours.size} of ${DATA.rows.length} rows shown`;
  update();
}

function setHidden(rows) {
  state.hidden = new Set(rows);
  showRows();
}

function setFocus(row) {
  if (row === state.focus) return;
  state.focus = row;
  for (const line of document.querySelectorAll("[data-row]")) {
    line.classList.toggle("focus", Number(line.dataset.row) === row);
  }
  for (const chart of charts) chart.plot.redraw(false, false);
}

/* ---- curves ---- */

/* The curves of one metric: {row, name, xs, ys}, one per run that has values against the chosen axis. */
function curvesOf(metric) {
  const found = [];
  for (const row of shown()) {
    for (const run of DATA.rows[row].runs) {
      const [allX, allY] = [run.x[state.axis], run.y[metric.name]];
      if (!allX || !allY) continue;
      const kept = allY.map((_, at) => at).filter((at) => allY[at] !== null && allX[at] !== null);
      if (!kept.length) continue;
      kept.sort((one, other) => allX[one] - allX[other]);
      const ys = smooth(kept.map((at) => allY[at]), state.smoothing);
      found.push({ row, name: run.name, xs: kept.map((at) => allX[at]), ys });
    }
  }
  return [...found, ...referencesOf(metric)];
}

/* The published curves of this metric that belong to a shown row and have values against the chosen axis: as
   published, never smoothed. They may belong to several rows, so their row is null. */
function referencesOf(metric) {
  return DATA.references
    .filter((each) => each.metric === metric.name && each.x[state.axis] && each.rows.some((row) => colours.has(row)))
    .map((each) => ({ row: null, name: each.name, xs: each.x[state.axis], ys: each.y }));
}

function rangeX(curves) {
  if (state.zoom) return state.zoom;
  let low = Infinity, high = -Infinity;
  for (const { xs } of curves) {
    low = Math.min(low, xs[0]);
    high = Math.max(high, xs[xs.length - 1]);
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/* From the values inside the x range; within 0 to 100 % for metrics in percent. */
function rangeY(curves, [from, to], metric) {
  let low = Infinity, high = -Infinity;
  for (const { xs, ys } of curves) {
    for (let at = 0; at < xs.length; at++) {
      if (xs[at] < from || xs[at] > to || (state.log && ys[at] <= 0)) continue;
      low = Math.min(low, ys[at]);
      high = Math.max(high, ys[at]);
    }
  }
  if (low > high) return state.log ? [0.1, 1] : [0, 1];
  if (state.log) return [low / 1.1, metric.percent ? Math.min(1, high * 1.1) : high * 1.1];
  const margin = high > low ? 0.05 * (high - low) : Math.abs(high) * 0.1 || 0.5;
  const [bottom, top] = [low - margin, high + margin];
  return metric.percent ? [Math.max(0, bottom), Math.min(1, top)] : [low >= 0 ? Math.max(0, bottom) : bottom, top];
}

function colourOf(curve, inFocus = false) {
  if (curve.row === null) return palette.reference;
  const index = colours.get(curve.row);
  return inFocus && index < 0 ? palette.ink : palette[index];
}

/* Legend of published curves below their chart, since they have no row in the table. */
function referenceLegend(curves) {
  const lines = curves.filter((curve) => curve.row === null).map((curve) => {
    const mark = element("span", { className: "reference-mark" });
    return element("span", {}, mark, ` ${curve.name}`);
  });
  return lines.length ? [element("p", { className: "references" }, ...lines)] : [];
}

function drawCurves(chart) {
  const { plot, curves } = chart;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.lineJoin = "round";
  // From back to front: published curves, grey curves, coloured curves, the row in focus
  const height = (curve) =>
    curve.row === null ? -1 : curve.row === state.focus ? 2 : colours.get(curve.row) >= 0 ? 1 : 0;
  for (const curve of [...curves].sort((one, other) => height(one) - height(other) || other.row - one.row)) {
    const isReference = curve.row === null;
    const index = isReference ? -1 : colours.get(curve.row);
    const inFocus = !isReference && curve.row === state.focus;
    ctx.strokeStyle = colourOf(curve, inFocus);
    ctx.fillStyle = ctx.strokeStyle;
    ctx.lineWidth = ratio * (isReference || inFocus ? 3 : index < 0 ? 1 : 1.6);
    ctx.setLineDash(index < 0 ? [] : DATA.dashes[index].map((length) => length * ratio * 1.6));
    ctx.globalAlpha = state.focus !== null && !inFocus ? 0.35 : 1;
    ctx.beginPath();
    let pen = false;
    for (let at = 0; at < curve.xs.length; at++) {
      if (state.log && curve.ys[at] <= 0) { pen = false; continue; }
      const x = plot.valToPos(curve.xs[at], "x", true), y = plot.valToPos(curve.ys[at], "y", true);
      if (pen) ctx.lineTo(x, y); else ctx.moveTo(x, y);
      pen = true;
    }
    ctx.stroke();
    if (curve.xs.length <= 30 && index >= 0) {
      for (let at = 0; at < curve.xs.length; at++) {
        if (state.log && curve.ys[at] <= 0) continue;
        ctx.beginPath();
        ctx.arc(plot.valToPos(curve.xs[at], "x", true), plot.valToPos(curve.ys[at], "y", true), 2.5 * ratio, 0, 7);
        ctx.fill();
      }
    }
  }
  ctx.restore();
}

function makeChart(metric) {
  const tooltip = element("div", { className: "tooltip", hidden: true });
  const spoken = element("p", { className: "spoken" });
  spoken.setAttribute("aria-live", "polite");
  const host = element("div", { className: "chart", tabIndex: 0 }, tooltip);
  host.setAttribute("role", "group");
  host.setAttribute("aria-label", `${metric.title}: arrow keys move through the curves, + and - zoom, Escape resets`);
  const curves = curvesOf(metric);
  const caption = element("figcaption", { textContent: metric.title });
  const figure = element("figure", {}, caption, host, ...referenceLegend(curves), spoken);
  figure.dataset.metric = metric.name;
  document.getElementById("charts").append(figure);

  const chart = { metric, host, tooltip, spoken, curves, figure };
  const axisTitle = DATA.axes.find(([name]) => name === state.axis)[1];
  const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") },
    font: "12px system-ui, sans-serif" };
  chart.plot = new uPlot(
    {
      width: Math.max(200, host.clientWidth),
      height: CHART_HEIGHT,
      legend: { show: false },
      scales: {
        x: { time: false, range: () => rangeX(chart.curves) },
        y: { distr: state.log ? 3 : 1, range: () => rangeY(chart.curves, rangeX(chart.curves), metric) },
      },
      axes: [
        { ...axis, label: axisTitle, labelSize: 22, labelFont: axis.font, size: 34,
          values: (_, splits) => splits.map((value) => (value === null ? "" : SHORT.format(value))) },
        { ...axis, size: 62,
          values: (_, splits) => splits.map((value) => (value === null ? "" : format(value, metric.percent))) },
      ],
      series: [{}, { show: true, points: { show: false }, paths: () => null }],
      cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, bind: { dblclick: () => null } },
      hooks: {
        draw: [() => drawCurves(chart)],
        setCursor: [(plot) => hover(chart, plot.cursor.left, plot.cursor.top)],
        setSelect: [(plot) => {
          if (plot.select.width > 3) {
            const { left, width } = plot.select;
            setZoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
          }
        }],
      },
    },
    [[0, 1], [0.5, 1]], // the ranges come from the functions above
    host,
  );
  chart.plot.over.addEventListener("dblclick", () => setZoom(null));
  host.addEventListener("keydown", (event) => key(chart, event));
  host.addEventListener("blur", () => leave(chart));
  new ResizeObserver(() => {
    if (Math.abs(host.clientWidth - chart.plot.width) > 1 && host.clientWidth > 0) {
      chart.plot.setSize({ width: host.clientWidth, height: CHART_HEIGHT });
    }
  }).observe(host);
  return chart;
}

function update() {
  palette = { "-1": css("--others"), ink: css("--ink"), reference: css("--reference") };
  DATA.dashes.forEach((_, index) => { palette[index] = css(`--c${index}`); });
  for (const chart of charts) chart.plot.destroy();
  document.getElementById("charts").replaceChildren();
  charts = DATA.metrics.filter((metric) => state.metrics.has(metric.name)).map(makeChart);
  document.getElementById("zoomed").hidden = !state.zoom;
}

function setZoom(range) {
  state.zoom = range;
  document.getElementById("zoomed").hidden = !range;
  for (const chart of charts) {
    chart.plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    chart.plot.redraw();
  }
}

/* ---- reading the curves ---- */

function hover(chart, left, top) {
  if (left === null || left === undefined || left < 0) return leave(chart);
  const x = chart.plot.posToVal(left, "x");
  const read = [];
  for (const curve of chart.curves) {
    if (x < curve.xs[0] && x < curve.xs[curve.xs.length - 1]) {
      const gap = chart.plot.valToPos(curve.xs[0], "x") - left;
      if (gap > 12) continue; // the curve begins to the right of the cursor
    }
    const at = nearest(curve.xs, x);
    if (Math.abs(chart.plot.valToPos(curve.xs[at], "x") - left) > 60 && curve.xs.length > 1) continue;
    const y = chart.plot.valToPos(curve.ys[at], "y");
    if (Number.isFinite(y)) read.push({ curve, at, away: Math.abs(y - top) });
  }
  if (!read.length) return leave(chart);
  read.sort((one, other) => one.away - other.away);
  show(chart, read.slice(0, TOOLTIP_ROWS), left);
}

/* Show ``read``, points of curves, in the tooltip; the one in focus comes first. */
function show(chart, read, left) {
  const { metric, tooltip, plot } = chart;
  const [{ curve, at }] = read;
  const [, axisTitle] = DATA.axes.find(([name]) => name === state.axis);
  const lines = [...read]
    .sort((one, other) => other.curve.ys[other.at] - one.curve.ys[one.at])
    .map((point) => {
      const mark = element("span", { className: "mark" });
      mark.style.background = colourOf(point.curve);
      const line = element("div", {}, mark, element("span", { textContent: point.curve.name }),
        element("b", { textContent: format(point.curve.ys[point.at], metric.percent) }));
      line.classList.toggle("focus", point === read[0]);
      return line;
    });
  const head = `${axisTitle}: ${PLAIN.format(curve.xs[at])}`;
  tooltip.replaceChildren(element("div", { className: "head", textContent: head }), ...lines);
  tooltip.hidden = false;
  const space = plot.bbox.left / devicePixelRatio;
  const right = left > plot.bbox.width / devicePixelRatio / 2; // keep the tooltip off the cursor
  tooltip.style.left = right ? "auto" : `${space + left + 14}px`;
  tooltip.style.right = right ? `${chart.host.clientWidth - space - left + 14}px` : "auto";
  chart.point = { curve, at };
  setFocus(curve.row);
}

function leave(chart) {
  if (chart.tooltip.hidden) return;
  chart.tooltip.hidden = true;
  setFocus(null);
}

function key(chart, event) {
  const { curves, plot } = chart;
  if (!curves.length) return;
  let { curve, at } = chart.point && curves.includes(chart.point.curve) ? chart.point : { curve: curves[0], at: 0 };
  const x = curve.xs[at];
  const [from, to] = rangeX(curves);
  const other = (step) => curves[(curves.indexOf(curve) + step + curves.length) % curves.length];
  switch (event.key) {
    case "ArrowRight": at = Math.min(curve.xs.length - 1, at + 1); break;
    case "ArrowLeft": at = Math.max(0, at - 1); break;
    case "ArrowDown": curve = other(1); at = nearest(curve.xs, x); break;
    case "ArrowUp": curve = other(-1); at = nearest(curve.xs, x); break;
    case "Home": at = 0; break;
    case "End": at = curve.xs.length - 1; break;
    case "+": setZoom([x - (x - from) / 2, x + (to - x) / 2]); break;
    case "-": case "Escape": setZoom(null); break;
    default: return;
  }
  event.preventDefault();
  show(chart, [{ curve, at }], plot.valToPos(curve.xs[at], "x"));
  const axisTitle = DATA.axes.find(([name]) => name === state.axis)[1];
  chart.spoken.textContent =
    `${curve.name}, ${axisTitle} ${PLAIN.format(curve.xs[at])}: ${format(curve.ys[at], chart.metric.percent)}`;
}

/* ---- the table ---- */

function prepareRows() {
  for (const line of tableRows) {
    const row = Number(line.dataset.row);
    line.addEventListener("mouseenter", () => { if (!line.classList.contains("off")) setFocus(row); });
    line.addEventListener("mouseleave", () => setFocus(null));
    if (!line.closest(".results")) continue; // one checkbox per row
    const box = element("input", { type: "checkbox", checked: true });
    box.setAttribute("aria-label", `show ${DATA.rows[row].name}`);
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(row); else state.hidden.add(row);
      showRows();
    });
    line.cells[0].prepend(box);
  }
}

function prepareSorting(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", textContent: head.textContent, title: "sort" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const number = head.classList.contains("n");
      const turns = number ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      const turn = turns[(turns.indexOf(head.getAttribute("aria-sort") ?? "none") + 1) % 3];
      for (const each of heads) each.removeAttribute("aria-sort");
      if (turn !== "none") head.setAttribute("aria-sort", turn);
      table.classList.toggle("sorted", turn !== "none");
      body.append(...(turn === "none" ? original : sortedRows(original, column, turn === "descending")));
    });
  });
}

/* Numbers sort by data-value (rows without one come last), texts alphabetically. */
function sortedRows(lines, column, descending) {
  const value = (line) => {
    const cell = line.cells[column];
    return cell.classList.contains("n") ? (cell.dataset.value ? Number(cell.dataset.value) : null) : cell.textContent;
  };
  return [...lines].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  });
}

/* ---- the controls ---- */

function prepareControls() {
  const on = (id, event, action) => document.getElementById(id).addEventListener(event, action);
  on("filter", "input", (event) => { state.filter = event.target.value; showRows(); });
  on("all", "click", () => setHidden([]));
  on("none", "click", () => setHidden(DATA.rows.map((_, row) => row)));
  on("best", "click", () => setHidden(DATA.rows.map((_, row) => row).filter((row) => DATA.rows[row].colour < 0)));
  on("axis", "change", (event) => { state.axis = event.target.value; state.zoom = null; update(); });
  on("log", "change", (event) => { state.log = event.target.checked; update(); });
  on("smoothing", "input", (event) => {
    state.smoothing = Number(event.target.value);
    document.getElementById("weight").textContent = state.smoothing.toFixed(2);
    update();
  });
  on("zoomed", "click", () => setZoom(null));
  const axis = document.getElementById("axis");
  for (const [name, title] of DATA.axes) axis.append(element("option", { value: name, textContent: title }));
  axis.value = state.axis;
  for (const metric of DATA.metrics) {
    const box = element("input", { type: "checkbox", checked: state.metrics.has(metric.name) });
    box.addEventListener("change", () => {
      if (box.checked) state.metrics.add(metric.name); else state.metrics.delete(metric.name);
      update();
    });
    document.getElementById("metrics").append(element("label", {}, box, ` ${metric.title}`));
  }
  for (const part of document.querySelectorAll(".needs-script")) part.hidden = false;
}

prepareRows();
for (const table of document.querySelectorAll(".sortable")) prepareSorting(table);
prepareControls();
showRows();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
