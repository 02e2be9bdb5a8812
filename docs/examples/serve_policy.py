"""Serve a policy to a robot or simulator on another machine: images in, actions out.

pip install websockets
python serve_policy.py runs/dots 8765

A connection is an episode. A message is the bytes of one observation; the answer is the bytes of
an action, float32. The server listens on this machine alone; name an address of it for others.
"""

import sys

import numpy as np
from websockets.sync.server import serve

import fql


def make_server(run, port, address='localhost'):
    def answer(connection):
        policy = fql.load_policy(run)
        for message in connection:
            image = np.frombuffer(message, policy.observation_dtype)
            connection.send(policy(image.reshape(policy.observation_shape)).tobytes())

    return serve(answer, address, port)


if __name__ == '__main__':
    with make_server(sys.argv[1], int(sys.argv[2])) as server:
        server.serve_forever()
