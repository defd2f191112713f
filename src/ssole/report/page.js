"use strict";
// Draws the charts of the page, gives them the colours of the page, and makes the map answer.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f", "#b5bd00",
  "#9467bd", "#e377c2", "#17becf", "#a05000", "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#ff9da6", "#9d755d", "#bab0ac"];
const SHEET = 500, COLUMNS = 25;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const views = [];

function colour(view) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), faint = style.getPropertyValue("--faint").trim();
  const line = style.getPropertyValue("--line").trim(), paper = style.getPropertyValue("--paper").trim();
  for (const model of view.model.references()) {
    const set = {};
    for (const name of Object.keys(model.attributes)) {
      if (name === "axis_label_text_color" || name === "major_label_text_color") set[name] = faint;
      else if (name === "label_text_color" || name === "title_text_color") set[name] = ink;
      else if (name === "grid_line_color" || name === "axis_line_color" || name === "major_tick_line_color") set[name] = line;
      else if (name === "minor_tick_line_color" || name === "border_line_color" && model.type === "Legend") set[name] = null;
      else if (name === "background_fill_color" && model.type === "Legend") set[name] = paper;
    }
    if (model.name === "chosen") set.line_color = ink;
    if (Object.keys(set).length) model.setv(set);
  }
}

function startMap(number, view) {
  const root = document.querySelector(`[data-map="${number}"]`);
  const data = JSON.parse(root.querySelector("[data-points]").textContent);
  const [source, mapper] = ["points", "colours"].map((name) => [...view.model.references()].find((model) => model.name === name));
  const select = root.querySelector(".colour"), find = root.querySelector(".find"), found = root.querySelector(".found");
  const legend = root.querySelector(".legend");
  const names = data.ids.map((id) => id.toLowerCase());
  let column = data.columns[0], alone = null, shown = [], chosen = -1;

  function show(index) {
    const card = root.querySelector(".card"), thumb = root.querySelector(".thumb"), values = root.querySelector(".values");
    const place = data.where[index], sheet = data.sheets[Math.floor(place / SHEET)];
    thumb.style.backgroundImage = sheet ? `url(${sheet})` : "none";
    if (sheet) {
      const at = place % SHEET, size = thumb.clientWidth;
      thumb.style.backgroundSize = `${COLUMNS * size}px auto`;
      thumb.style.backgroundPosition = `-${(at % COLUMNS) * size}px -${Math.floor(at / COLUMNS) * size}px`;
    }
    thumb.textContent = sheet ? "" : "no thumbnail kept";
    thumb.setAttribute("aria-label", sheet ? data.ids[index] : "No thumbnail of this image");
    card.querySelector(".name").textContent = data.ids[index];
    values.replaceChildren(...data.columns.flatMap((one) => {
      const term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = one.name;
      value.textContent = one.names[one.codes[index]];
      return [term, value];
    }));
  }

  function filter() {
    const text = find.value.trim().toLowerCase(), alpha = new Float32Array(names.length);
    shown = [];
    for (let i = 0; i < names.length; i++) {
      const inText = !text || names[i].includes(text) || column.names[column.codes[i]].toLowerCase().includes(text);
      const hit = inText && (alone === null || column.codes[i] === alone);
      alpha[i] = hit ? 0.85 : 0.04;
      if (hit) shown.push(i);
    }
    source.data = { ...source.data, alpha };
    found.textContent = shown.length === names.length ? "" : `${shown.length.toLocaleString()} of ${names.length.toLocaleString()}`;
    chosen = -1;
  }

  function recolour() {
    column = data.columns[select.selectedIndex];
    alone = null;
    const palette = column.names.map((_, i) => PALETTE[i % PALETTE.length]);
    source.data = { ...source.data, code: Uint8Array.from(column.codes) };
    mapper.setv({ palette, low: -0.5, high: column.names.length - 0.5 });
    const counts = new Array(column.names.length).fill(0);
    for (const code of column.codes) counts[code]++;
    legend.replaceChildren(...column.names.map((name, i) => {
      const button = document.createElement("button"), dot = document.createElement("i");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      dot.style.background = palette[i];
      button.append(dot, `${name} (${counts[i].toLocaleString()})`);
      button.addEventListener("click", () => {
        alone = alone === i ? null : i;
        [...legend.children].forEach((other, j) => other.setAttribute("aria-pressed", String(j === alone)));
        filter();
      });
      return button;
    }));
    filter();
  }

  function step(by) {
    if (!shown.length) return;
    chosen = chosen < 0 && by < 0 ? shown.length - 1 : (chosen + by + shown.length) % shown.length;
    source.selected.indices = [shown[chosen]];
    show(shown[chosen]);
  }

  select.addEventListener("change", recolour);
  find.addEventListener("input", filter);
  root.querySelector(".next").addEventListener("click", () => step(1));
  root.querySelector(".previous").addEventListener("click", () => step(-1));
  source.inspect.connect(() => { const hit = source.inspected.indices; if (hit.length) show(hit[0]); });
  source.selected.change.connect(() => { const hit = source.selected.indices; if (hit.length) show(hit[0]); });
  recolour();
}

// A live page asks its server whether anything is new, and loads itself again if so; the browser keeps the place.
function watch() {
  const script = document.getElementById("live");
  if (!script) return;
  const live = JSON.parse(script.textContent), state = document.querySelector(".live");
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("version" + location.search);
      if (await answer.text() !== live.version) location.reload();
      else state.textContent = "live: follows the run";
    } catch {
      state.textContent = "no longer live: the server has ended, and this is what it last showed";
    }
  }, 1000 * live.every);
}

async function start() {
  watch();
  Bokeh.set_log_level("error");
  for (const script of document.querySelectorAll("[data-chart]")) {
    const id = script.dataset.chart;
    const manager = await Bokeh.embed.embed_item(JSON.parse(script.textContent), id);
    const view = [...manager.roots][0] ?? manager;
    views.push(view);
    colour(view);
    if (id.startsWith("map-")) startMap(id.slice(4), view);
  }
  dark.addEventListener("change", () => views.forEach(colour));
  document.documentElement.dataset.ready = "yes";
}

start();
