// Sorting and filtering of the gallery; without it the cards stand from worst to best.
"use strict";

(() => {
  const form = document.getElementById("controls"), list = document.getElementById("cards");
  const cards = Array.from(list.children, (element, place) => {
    const texts = (name) => Array.from(element.querySelectorAll(name), (found) => found.textContent);
    const [prediction, references] = [texts(".prediction").map(words), texts(".references li").map(words)];
    return {
      element, place, id: Number(element.dataset.byId), score: element.dataset.score === "" ? -Infinity : Number(element.dataset.score),
      words: { prediction, references, anywhere: [...prediction, ...references] },
    };
  });
  const orders = { worst: (a, b) => a.place - b.place, best: (a, b) => b.place - a.place, id: (a, b) => a.id - b.id };

  // A text as its words, each behind a space, so that " ca" is found where a word begins so
  function words(text) {
    return " " + text.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter(Boolean).join(" ");
  }

  // All words must begin words of one text: of the prediction, or of one reference
  function says(card, wanted, where) {
    return card.words[where].some((text) => wanted.every((word) => text.includes(word)));
  }

  function number(field, otherwise) {
    return field.value === "" || Number.isNaN(field.valueAsNumber) ? otherwise : field.valueAsNumber;
  }

  function update() {
    const wanted = words(form.word.value).split(" ").filter(Boolean).map((word) => ` ${word}`);
    const [low, high] = [number(form.low, -Infinity), number(form.high, Infinity)];
    let shown = 0;
    for (const card of cards) {
      const fits = card.score >= low && card.score <= high && (!wanted.length || says(card, wanted, form.where.value));
      card.element.hidden = !fits;
      shown += fits;
    }
    document.getElementById("count").textContent = `${shown} of ${cards.length} shown`;
    document.getElementById("none").hidden = shown > 0;
    for (const bar of document.querySelectorAll("[data-from]")) {
      bar.classList.toggle("outside", Number(bar.dataset.to) <= low || Number(bar.dataset.from) > high);
    }
  }

  function sort() {
    list.append(...cards.slice().sort(orders[form.order.value]).map((card) => card.element));
  }

  form.hidden = false;
  form.addEventListener("input", update);
  form.order.addEventListener("change", sort);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sort(); update(); }));
  sort(); // a browser may fill in what was chosen before
  update();
  watchClouds(list.querySelectorAll("figure.cloud"));
})();
