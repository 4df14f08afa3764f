// Draws the figures in the colours of the style sheet, and again when those change.
(() => {
  "use strict";
  const root = document.documentElement;
  const specifications = JSON.parse(document.getElementById("specifications").textContent);
  const isMouse = window.matchMedia("(pointer: fine)").matches;

  function coloured(value, style) {
    if (typeof value === "string") {
      const named = /^var\((--[\w-]+)\)$/.exec(value);
      return named ? style.getPropertyValue(named[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  }

  // Leaves out labels until no two are nearer than so many pixels.
  function thinned(axis, pixels) {
    if (!axis.tickvals || axis.tickvals.length < 2) return;
    const span = Math.abs(axis.range[1] - axis.range[0]);
    const step = Math.ceil((26 * span) / (pixels * (axis.tickvals[1] - axis.tickvals[0])));
    const keep = (_, index) => index % step === 0;
    axis.tickvals = axis.tickvals.filter(keep);
    axis.ticktext = axis.ticktext.filter(keep);
  }

  function draw() {
    const style = getComputedStyle(root);
    for (const [name, figure] of Object.entries(specifications)) {
      const element = document.getElementById("figure-" + name);
      const layout = coloured(figure.layout, style);
      layout.width = element.clientWidth;
      thinned(layout.xaxis, layout.width - layout.margin.l - layout.margin.r);
      layout.dragmode = figure.zoom && isMouse ? "zoom" : false;
      Plotly.react(element, coloured(figure.data, style), layout, {
        displayModeBar: false,
        scrollZoom: false,
        responsive: false,
      });
    }
  }

  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("beforeprint", () => {
    root.classList.add("printing");
    draw();
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("printing");
    draw();
  });
  draw();
})();
