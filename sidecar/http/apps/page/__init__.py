"""The page `/ui`, by which people see and change what is published.

`assets` serves its files, which are in `static/` of this package; they need no token, and hold no data.
`history` lists the versions of a content and compares one with the current content;
`live` sends the changes to the page of a writer.
What else the page shows comes from the routes that programs use: `/files`, `/events`, `/readyz`.
"""
