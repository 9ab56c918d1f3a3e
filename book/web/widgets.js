// Between require.js and the widget manager: all their modules and fonts lie beside this file, on no other host.
requirejs.config({ baseUrl: new URL(".", document.currentScript.src).href });
