// What the theme adds after loading, made fit for keyboards and screen readers: a copy button is no landmark, a wide table can be scrolled.
(() => {
  const mend = () => {
    document.querySelectorAll("nav.md-code__nav:not([role])").forEach((one) => one.setAttribute("role", "group"));
    document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((one) => {
      one.tabIndex = 0;
      one.setAttribute("role", "group");
      one.setAttribute("aria-label", "table");
    });
  };
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  mend();
})();
