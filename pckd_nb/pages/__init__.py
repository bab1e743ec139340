"""Pages about runs, each as one HTML file that needs nothing else: no other file, no internet connection, no notebook.

Pictures are part of the file. All text is escaped. The pages follow the light or dark setting of the browser, and fit
on the screen of a phone.
"""

from .difference import difference_page
from .ranking import ranking_page
from .report import report_page

__all__ = ["difference_page", "ranking_page", "report_page"]
