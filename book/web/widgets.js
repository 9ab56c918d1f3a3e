// Between require.js and the widget manager: where its module for these widgets is, so that it asks no other host.
requirejs.config({ paths: { anywidget: new URL("anywidget", document.currentScript.src).href } });
