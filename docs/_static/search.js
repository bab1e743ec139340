// Sphinx takes the words around a hit from the element of the role "main", which in this theme holds buttons, too.
if (typeof Search !== "undefined") {
  const textOf = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article");
    return textOf(article ? `<div role="main">${article.innerHTML}</div>` : html, anchor);
  };
}
