"""A headless Chromium that opens a page, through its debugging pipe."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
FLAGS = (
    *('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'),
    *('--remote-debugging-pipe', '--no-first-run', '--disable-background-networking'),
)


def chromium():
    """The path of the program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. Attribute `faults` has the console's errors and the failed requests."""

    def __init__(self, profile):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def connect():  # Chromium reads commands from 3 and writes answers to 4.
            commands, answers = os.dup(to_browser), os.dup(from_browser)
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(
            [chromium(), *FLAGS, f'--user-data-dir={profile}', 'about:blank'],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer, self._session = 0, b'', None
        self.faults = []
        targets = self.send('Target.getTargets')['targetInfos']
        page = next(target for target in targets if target['type'] == 'page')
        attached = self.send('Target.attachToTarget', targetId=page['targetId'], flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.send(f'{domain}.enable')

    def open(self, path: Path, width: int, dark: bool = False):
        """Loads a file in a window of this width."""
        self.send(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.send('Emulation.setEmulatedMedia', features=[scheme])
        self.send('Page.navigate', url=path.absolute().as_uri())
        while self._read().get('method') != 'Page.loadEventFired':
            pass

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        answer = self.send('Runtime.evaluate', expression=expression, returnByValue=True)
        return answer['result'].get('value')

    def screenshot(self, path: Path):
        """Writes the whole page as a PNG."""
        size = self.send('Page.getLayoutMetrics')['cssContentSize']
        clip = {'x': 0, 'y': 0, 'width': size['width'], 'height': size['height'], 'scale': 1}
        shot = self.send('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot['data']))

    def close(self):
        """Ends the program."""
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def send(self, method, **params):
        """Sends a command and returns its answer; keeps the events reported before it."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params}
        if self._session is not None:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while (answer := self._read()).get('id') != self._number:
            pass
        assert 'error' not in answer, answer
        return answer['result']

    def _read(self):
        while b'\0' not in self._buffer:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, 'Chromium has ended'
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b'\0')
        event = json.loads(message)
        method, params = event.get('method'), event.get('params', {})
        if method == 'Runtime.exceptionThrown' or (
            method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning')
        ):
            self.faults.append(params)
        elif method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.faults.append(params['entry'])
        elif method == 'Network.requestWillBeSent':
            url = params['request']['url']
            if not url.startswith(('data:', 'file:')):
                self.faults.append(url)
        return event
