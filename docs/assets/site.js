// What the theme adds after loading, made fit for keyboards and screen readers: each landmark has a name of its own, a wide table can be scrolled.
(() => {
  const mend = () => {
    document.querySelectorAll("nav.md-code__nav").forEach((one, number) => (one.ariaLabel ||= `code ${number + 1}`));
    document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((one) => {
      one.tabIndex = 0;
      one.setAttribute("role", "group");
      one.setAttribute("aria-label", "table");
    });
  };
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  mend();
})();
