// Light, dark, or as the system says: <html data-theme> is what it is now. Runs before the first paint.
{
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = localStorage.getItem("weir-theme");
    const theme = chosen === "light" || chosen === "dark" ? chosen : system.matches ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    window.dispatchEvent(new Event("weir-theme"));
  };
  window.weirTheme = {
    get chosen() { return localStorage.getItem("weir-theme") ?? "auto"; },
    choose(value) {
      if (value === "auto") localStorage.removeItem("weir-theme");
      else localStorage.setItem("weir-theme", value);
      apply();
    },
  };
  system.addEventListener("change", apply);
  apply();
}
