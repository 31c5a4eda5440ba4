/* Uploads, and names of sliders' handles for those who do not see them. */
(function () {
  "use strict";

  const say = (kind, answer) =>
    window.dash_clientside.set_props(kind === "plan" ? "uploaded-plan" : "uploaded", {
      data: Object.assign({ at: Date.now() }, answer),
    });

  async function send(kind, file) {
    const page = document.getElementById("token").dataset;
    if (file.size > Number(page.most)) {
      const most = Math.round(Number(page.most) / 2 ** 20);
      say(kind, { error: `${file.name}: is larger than the ${most} MiB that may be uploaded` });
      return;
    }
    window.dash_clientside.set_props(kind === "plan" ? "plan-said" : "upload-said", {
      children: `Reading ${file.name} …`,
    });
    try {
      const response = await fetch(`upload/${kind}`, {
        method: "POST",
        body: file,
        headers: {
          "Content-Type": "application/octet-stream",
          "X-Kvcast-Page": page.page,
          "X-Kvcast-Name": encodeURIComponent(file.name),
        },
      });
      say(kind, await response.json());
    } catch (error) {
      say(kind, { error: `${file.name}: could not be sent` });
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-upload]");
    if (!button) return;
    const chooser = document.createElement("input");
    chooser.type = "file";
    chooser.addEventListener("change", () => {
      if (chooser.files.length) send(button.dataset.upload, chooser.files[0]);
    });
    chooser.click();
  });

  /* On a narrow screen the settings stand above the results: leave the first group open. */
  let folded = !window.matchMedia("(max-width: 760px)").matches;
  function fold() {
    const groups = document.querySelectorAll(".settings details");
    if (folded || !groups.length) return;
    folded = true;
    groups.forEach((group, place) => (group.open = place === 0));
  }

  function name() {
    for (const slid of document.querySelectorAll("[data-names]")) {
      const handle = slid.querySelector("[role=slider]");
      if (!handle) continue;
      const text = document.getElementById(slid.dataset.names + "-text");
      handle.setAttribute("aria-labelledby", slid.dataset.names + "-label");
      if (!text) continue;
      if (handle.getAttribute("aria-valuetext") !== text.textContent)
        handle.setAttribute("aria-valuetext", text.textContent);
    }
  }

  /* Dash leads the focus to a menu by way of an unseen field; from the last menu of a group
     browsers then lead it back to the group's first control, for ever. */
  function nameMenus() {
    for (const menu of document.querySelectorAll("button.dash-dropdown[id^=set-]")) {
      const names = `${menu.id}-label ${menu.id}-value`;
      if (menu.getAttribute("aria-labelledby") !== names) menu.setAttribute("aria-labelledby", names);
      const unseen = menu.parentElement.querySelector(".dash-dropdown-focus-target");
      if (unseen && menu.tabIndex !== 0) {
        unseen.tabIndex = -1;
        menu.tabIndex = 0;
      }
    }
  }

  new MutationObserver(() => { fold(); name(); nameMenus(); }).observe(document.documentElement, {
    childList: true,
    subtree: true,
    characterData: true,
  });
})();
