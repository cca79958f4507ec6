// The dashboard asks for its figures again every few seconds, and changes what is there in place:
// scroll position, focus, an open table and a tooltip stay. It rests while its tab is hidden.
"use strict";

(() => {
  const board = document.getElementById("dashboard");
  const said = document.getElementById("dashboard-said");
  const every = 1000 * board.dataset.every;
  let failures = 0;
  let timer;

  // What Chart.js, the reader and the browser have put there is theirs.
  const THEIRS = { CANVAS: ["width", "height", "style"], DETAILS: ["open"] };

  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    const theirs = THEIRS[old.nodeName] || [];
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !theirs.includes(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value && !theirs.includes(name)) old.setAttribute(name, value);
    }
    if (old.nodeName === "CANVAS") redraw(old);
    else morphChildren(old, fresh);
  }

  function morphChildren(old, fresh) {
    const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
    after.forEach((node, n) => (before[n] ? morph(before[n], node) : old.append(node)));
    before.slice(after.length).forEach((node) => node.remove());
  }

  function redraw(canvas) {
    const chart = Chart.getChart(canvas);
    const data = JSON.parse(canvas.dataset.value);
    if (!chart) return;
    chart.data.labels = data.labels;
    data.datasets.forEach((set, n) => (chart.data.datasets[n].data = set.data));
    chart.update("none");
  }

  // The words of the charts are as dark as those of the page.
  function colour() {
    const { color } = getComputedStyle(document.body);
    for (const canvas of board.querySelectorAll("canvas")) {
      const chart = Chart.getChart(canvas);
      if (!chart) continue;
      chart.options.plugins.legend.labels.color = color;
      for (const axis of ["x", "y"]) chart.options.scales[axis].ticks.color = color;
      chart.update("none");
    }
  }

  const tripped = () => Number(board.querySelector("[data-tripped]")?.dataset.tripped.replace(/,/g, "") || 0);

  function say(text) {
    if (said.textContent !== text) said.textContent = text;
  }

  async function refresh() {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const answer = await fetch(board.dataset.fragment, { signal: AbortSignal.timeout(10000) });
      if (answer.redirected) throw new Error("you are signed out; load the page again");
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const fresh = document.createElement("div");
      fresh.innerHTML = await answer.text();
      const before = tripped();
      morphChildren(board, fresh);
      const now = tripped();
      if (now > before) say(now === 1 ? "One subscription is tripped." : `${now} subscriptions are tripped.`);
      else if (failures || now < before) say("");
      failures = 0;
    } catch (error) {
      failures += 1;
      const why = error.name === "Error" ? error.message : "the server cannot be reached";
      const at = board.querySelector("time[data-as-of]")?.textContent;
      say(`Not refreshed since ${at}: ${why}.`);
    }
    timer = setTimeout(refresh, every * Math.min(12, 2 ** failures));
  }

  window.addEventListener("load", () => {
    colour();
    new MutationObserver(colour).observe(document.documentElement, { attributeFilter: ["class"] });
    timer = setTimeout(refresh, every);
  });
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
})();
