
"use strict";

// The previews: one at a time, chosen with a slider.
for (const box of document.querySelectorAll(".previews")) {
  const figures = [...box.querySelectorAll("figure")];
  const slider = box.querySelector("input"), told = box.querySelector("output");
  const show = () => {
    figures.forEach((figure, index) => figure.classList.toggle("now", index === +slider.value));
    told.textContent = figures[+slider.value].querySelector("figcaption").textContent.replace("step ", "");
  };
  box.classList.add("live");
  slider.addEventListener("input", show);
  show();
}

// The charts: the numbers of the step that is pointed at.
for (const svg of document.querySelectorAll("svg[data-lines]")) {
  const lines = Object.entries(JSON.parse(svg.dataset.lines)).filter(([, points]) => points.length);
  const [start, end, top, bottom] = svg.dataset.plot.split(" ").map(Number);
  const figure = svg.parentNode, width = svg.viewBox.baseVal.width, last = +svg.dataset.last;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const tip = document.createElement("div");
  cursor.setAttribute("class", "cursor");
  tip.className = "tip";
  tip.hidden = true;
  svg.append(cursor);
  figure.append(tip);
  const hide = () => {
    tip.hidden = true;
    cursor.removeAttribute("d");
  };
  const nearest = (points, step) =>
    points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
  const said = ([name, [, mean, least, greatest]]) =>
    (lines.length > 1 ? name + " " : "") + mean + (least === undefined ? "" : " (" + least + " to " + greatest + ")");
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    if (x < start - 8 || x > end + 8) return hide();
    const step = ((x - start) / (end - start)) * last;
    const at = nearest(lines.map(([, points]) => nearest(points, step)), step)[0];
    const shown = lines.map(([name, points]) => [name, nearest(points, at)]);
    const place = start + (at / last) * (end - start);
    cursor.setAttribute("d", "M" + place + " " + top + "V" + bottom);
    tip.textContent = ["step " + at.toLocaleString("en"), ...shown.map(said)].join("\n");
    tip.hidden = false;
    const left = (place / width) * box.width + box.left - figure.getBoundingClientRect().left;
    tip.style.left = Math.max(0, place < width / 2 ? left + 8 : left - tip.offsetWidth - 8) + "px";
  });
}
