// What the theme and its extensions leave out for readers without a mouse or a screen.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll(".bd-sidebar-primary summary")) {
    arrow.setAttribute("aria-label", `Sections of ${arrow.closest("li").querySelector("a").textContent.trim()}`);
  }
  for (const slider of document.querySelectorAll("input.anim-slider")) {
    slider.setAttribute("aria-label", "Frame");
  }
  if (!document.querySelector("div.bd-sidebar-secondary")) {
    // on a page without sections; the theme's script hides this where a wide cell passes, and fails if it is not there
    document.body.insertAdjacentHTML("beforeend", '<div class="bd-sidebar-secondary" style="display: none"></div>');
  }
  document.querySelector(".citation-list")?.removeAttribute("role"); // a list whose children are no items
});

// A wide figure scrolls on a phone: with the keyboard too.
for (const event of ["load", "resize"]) {
  window.addEventListener(event, () => {
    for (const figure of document.querySelectorAll("figure")) {
      if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
      else figure.removeAttribute("tabindex");
    }
  });
}
