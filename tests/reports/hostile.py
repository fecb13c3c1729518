"""Names that try to break out of a page, a line or a column."""

NAMES = {
    "markup": 's3://b/"><script>alert(1)</script>.jpg',
    "attribute": "s3://b/x' onerror='alert(1)",
    "template": "{{ 7 * 7 }}{% raw %}.jpg",
    "scheme": "javascript:alert(1)//.jpg",
    "remote": '"><img src="http://127.0.0.1:9/x.png"><link href="https://127.0.0.1:9/x.css">',
    "comment": "<!-- --><![CDATA[ ]]></style></svg></table>",
    "long": "s3://b/" + "a" * 4000 + ".jpg",
    "deep": "s3://" + "a/" * 2000 + "b.jpg",
    "lines": "s3://b/one\ntwo\r\tthree\x00\x1b[31m.jpg",
    "reordered": "s3://b/\u202egpj.exe\u202c\u2066.jpg",
    "invisible": "s3://b/a\u200b\ufeff\u00ad\u2028.jpg",
    "surrogate": "s3://b/\udcff.jpg",
    "stacked": "s3://b/Z" + "\u0336\u0489\u0301" * 300 + ".jpg",
    "hebrew": "s3://b/דוגמה/תמונה.jpg",
    "wide": "s3://b/" + "日本語" * 60 + ".jpg",
    "no name": "",
}
