"""Take screenshots of a page written by diff.py, in light and dark, and say how long it loads.

    python diff.py OLD NEW --html page.html
    python bench/screenshots.py page.html pictures

Needs Debian's chromium and chromium-driver.
"""

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from terminal.command_line import command_line

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--disable-extensions"),
)
COLOURS = 64
VIEWS = {
    "graphs": "",
    "lines": "g",
    "whole": "gf0",
    "next": "fn",
    "pseudo": "c",
    "help": "?",
}  # keys to press


@contextmanager
def browser(width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """Start a headless Chromium without network, and end it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs", {"download.default_directory": str(Path(folder).resolve())}
        )
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        chrome = webdriver.Chrome(options, service)
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield chrome
        finally:
            chrome.quit()


def open_page(chrome: webdriver.Chrome, file: str | Path, fragment: str = "") -> None:
    """Load a page, and wait until it has shown its first function."""
    chrome.get(Path(file).resolve().as_uri() + fragment)
    WebDriverWait(chrome, 60).until(
        lambda chrome: chrome.find_element(By.TAG_NAME, "body").get_attribute("data-ready")
    )


def main(page: str, to: str, width: int = 1280, height: int = 800, fragment: str = "") -> None:
    """Write pictures of a page.

    Parameters
    ----------
    page : str
        A page written by diff.py --html; for packages, the folder's index.html.
    to : str
        Folder for the pictures.
    width, height : int
        Size of the window in pixels.
    fragment : str
        The function to show: the end of its address in the address bar, such as
        #0x401000,0x401230
    """
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        with browser(width, height, theme == "dark") as chrome:
            began = time.perf_counter()
            open_page(chrome, page, fragment)
            seconds = time.perf_counter() - began
            size = Path(page).stat().st_size / 1e6
            print(f"{theme}: {size:.1f} MB, first function shown after {seconds:.2f} seconds")
            package = "package" in chrome.find_element(By.TAG_NAME, "body").get_attribute("class")
            for view, keys in {"package": ""}.items() if package else VIEWS.items():
                if (
                    view == "pseudo"
                    and not chrome.find_element(By.ID, "view-pseudo").is_displayed()
                ):
                    continue
                for key in keys:
                    chrome.find_element(By.TAG_NAME, "body").send_keys(key)
                picture = Image.open(io.BytesIO(chrome.get_screenshot_as_png()))
                # With a palette the file is a third as large, and the page looks the same.
                picture.convert("RGB").quantize(COLOURS).save(folder / f"{view}-{theme}.png")


if __name__ == "__main__":
    command_line(main)
