"use strict";
for (const card of document.querySelectorAll(".card")) {
  const slider = card.querySelector("input[type=range]");
  if (!slider) continue;
  const show = () => {
    const chosen = card.querySelector("input[type=radio]:checked").value;
    for (const heat of card.querySelectorAll(".heat")) {
      heat.hidden = heat.dataset.finding !== chosen;
      heat.style.opacity = slider.value / 100;
    }
    for (const box of card.querySelectorAll(".marked"))
      box.classList.toggle("other", box.dataset.finding !== chosen);
    card.querySelector("output").value = slider.value + " %";
  };
  card.addEventListener("input", show);
  show();
}
const boxes = document.querySelector("#boxes");
if (boxes) {
  const toggle = () => document.body.classList.toggle("no-boxes", !boxes.checked);
  boxes.addEventListener("input", toggle);
  toggle();
}
