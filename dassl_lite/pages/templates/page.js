(() => {
  "use strict";
  const root = document.documentElement, card = document.getElementById("_card");
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const images = read("_images"), colours = read("_colours");
  const css = name => getComputedStyle(root).getPropertyValue(name).trim();
  const make = (tag, text) => Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text });

  // ---- charts: their content is in the page, their appearance comes from the style sheet
  const pageScale = () => [[0, css("--surface")], [0.001, mix(0.12)], [0.5, css("--accent")], [1, css("--heat")]];
  function mix(share) { // blends the accent colour into the surface
    const parts = name => css(name).match(/[0-9a-f]{2}/gi).slice(0, 3).map(hex => parseInt(hex, 16));
    const from = parts("--surface"), to = parts("--accent");
    return `rgb(${from.map((value, i) => Math.round(value + share * (to[i] - value))).join(",")})`;
  }
  const axes = layout => [...new Set(["xaxis", "yaxis", ...Object.keys(layout).filter(key => /^[xy]axis\d+$/.test(key))])];
  const own = (given, fallback) => (given === undefined ? fallback : given);
  const narrow = () => innerWidth < 640;
  function dressed(figure, square) {
    const layout = structuredClone(figure.layout), ink = css("--ink"), line = css("--line");
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { size: 12.5, family: getComputedStyle(document.body).fontFamily, ...layout.font, color: ink };
    layout.colorway = own(layout.colorway, colours);
    layout.margin = { l: 56, r: 16, t: 12, b: 48, ...layout.margin };
    layout.hoverlabel = { bgcolor: css("--paper"), bordercolor: line, font: { color: ink }, align: "left", ...layout.hoverlabel };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent"), ...layout.modebar };
    layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, ...layout.legend };
    for (const key of axes(layout)) {
      layout[key] = { automargin: true, gridcolor: css("--grid"), zerolinecolor: css("--grid"), linecolor: line, ...layout[key] };
      if (square && narrow() && (layout[key].ticktext || []).length > 20) layout[key].showticklabels = false; // no room
    }
    const data = figure.data.map(trace => ({
      ...trace,
      ...(trace.colorscale === "page" ? { colorscale: pageScale() } : {}),
      ...(trace.marker && trace.marker.colorscale === "page" ? { marker: { ...trace.marker, colorscale: pageScale() } } : {}),
    }));
    for (const trace of data) {
      for (const part of ["line", "marker"]) {
        if (trace[part] && trace[part].color === "ink") trace[part] = { ...trace[part], color: css("--faint") };
      }
    }
    return { data, layout };
  }
  // Listed explicitly, because Plotly's defaults include a button that would upload the chart to its publisher.
  const buttons = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const options = { responsive: true, displaylogo: false, modeBarButtons: buttons };
  const charts = [...document.querySelectorAll(".plot")].map(element => {
    const script = element.querySelector("script"), figure = JSON.parse(script.textContent);
    script.remove();
    return { element, figure };
  });
  const draw = ({ element, figure }) => {
    const { data, layout } = dressed(figure, element.classList.contains("square"));
    return Plotly.react(element, data, layout, options);
  };
  function drawAll() { charts.forEach(draw); follow(); }
  // Linked charts share the first one's legend: traces hidden there are hidden in all of them.
  const linked = charts.filter(({ figure }) => figure.layout.meta === "linked");
  function follow() {
    const [leader, ...others] = linked;
    if (!leader || !others.length) return;
    const seen = new Map();
    for (const trace of leader.element.data) if (trace.showlegend !== false) seen.set(trace.legendgroup, own(trace.visible, true));
    for (const { element } of others) {
      if (element.data) Plotly.restyle(element, { visible: element.data.map(trace => own(seen.get(trace.legendgroup), true)) });
    }
  }
  function listen({ element, figure }) {
    if (!Object.keys(figure.cards).length) return;
    element.on("plotly_hover", event => {
      const point = event.points[0];
      const key = Array.isArray(point.pointNumber) ? point.pointNumber.join(",") : `${point.curveNumber}:${point.pointNumber}`;
      show(figure.cards[key], event.event);
    });
    element.on("plotly_unhover", () => { card.hidden = true; });
  }
  function show(content, mouse) {
    card.hidden = !content;
    if (!content) return;
    card.replaceChildren(...content.lines.map(line => make("p", line)));
    if (content.images.length) {
      const thumbs = Object.assign(make("div"), { className: "thumbs" });
      for (const [number, text] of content.images) {
        const thumb = make("div");
        if (number !== null) thumb.append(Object.assign(make("img"), { src: images[number], alt: "" }));
        thumb.append(make("span", text));
        thumbs.append(thumb);
      }
      card.append(thumbs);
    }
    const { width, height } = card.getBoundingClientRect(), gap = 18, below = 44; // leaves room for the label
    const left = mouse.clientX + gap + width < innerWidth ? mouse.clientX + gap : mouse.clientX - gap - width;
    const top = mouse.clientY + below + height < innerHeight ? mouse.clientY + below : mouse.clientY - below - height;
    card.style.left = `${Math.max(4, left)}px`;
    card.style.top = `${Math.max(4, top)}px`;
  }
  addEventListener("scroll", () => { card.hidden = true; }, { passive: true });

  // ---- light and dark
  const setTheme = theme => { root.dataset.theme = theme; drawAll(); };
  document.getElementById("_theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", event => setTheme(event.matches ? "dark" : "light"));
  let before = "light";
  addEventListener("beforeprint", () => { before = root.dataset.theme; if (before !== "light") setTheme("light"); });
  addEventListener("afterprint", () => { if (before !== "light") setTheme(before); });

  // ---- tables
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  for (const table of document.querySelectorAll(".table")) {
    const size = Number(table.dataset.page), body = table.querySelector("tbody"), rows = [...body.rows];
    const filter = table.querySelector("input"), count = table.querySelector(".count");
    const [back, on] = table.querySelectorAll(".leaf button"), heads = [...table.querySelectorAll("th")];
    let shown = rows, page = 0;
    const key = (row, column) => {
      const cell = row.cells[column];
      return "v" in cell.dataset ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent.trim();
    };
    function update() {
      const last = Math.max(0, Math.ceil(shown.length / size) - 1);
      page = Math.min(page, last);
      const from = page * size, part = shown.slice(from, from + size);
      body.replaceChildren(...part);
      count.textContent = shown.length > size ? `${from + 1} to ${from + part.length} of ${shown.length.toLocaleString("en")}` : `${shown.length} of ${rows.length}`;
      back.disabled = page === 0;
      on.disabled = page === last;
    }
    function pick() {
      const wanted = filter.value.trim().toLowerCase();
      shown = rows.filter(row => row.textContent.toLowerCase().includes(wanted));
      page = 0;
      update();
    }
    heads.forEach((head, column) => {
      const number = rows.some(row => row.cells[column].classList.contains("n"));
      head.classList.toggle("n", number);
      head.querySelector("button").addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const order = was === "none" ? (number ? "descending" : "ascending") : was === "ascending" ? "descending" : "ascending";
        heads.forEach(other => other.setAttribute("aria-sort", other === head ? order : "none"));
        const sign = order === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const x = key(a, column), y = key(b, column);
          if (x === null || y === null) return (x === null) - (y === null); // empty cells last, in either order
          return sign * (typeof x === "number" && typeof y === "number" ? x - y : words.compare(x, y));
        });
        pick();
      });
    });
    filter.addEventListener("input", pick);
    back.addEventListener("click", () => { page -= 1; update(); });
    on.addEventListener("click", () => { page += 1; update(); });
    if (rows.length <= Math.min(size, 8)) table.querySelector(".tools").hidden = true;
    if (rows.length <= size) table.querySelector(".leaf").hidden = true;
    update();
  }

  // ---- images, copying
  for (const image of document.querySelectorAll("[data-image]")) image.src = images[image.dataset.image];
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(text);
      }
    });
  }

  // Draw charts one at a time, so that the page can be read in the meantime.
  (function next(number) {
    if (number === charts.length) {
      if (linked.length > 1) linked[0].element.on("plotly_restyle", follow);
      root.dataset.ready = "yes";
      return;
    }
    draw(charts[number]);
    listen(charts[number]);
    setTimeout(next, 0, number + 1);
  })(0);
})();
