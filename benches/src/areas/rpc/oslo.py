"""RPC over RabbitMQ with oslo.messaging, as OpenStack's services do it. Prints one line of JSON.

usage: oslo.py URL FLIGHTS PAYLOAD SECONDS
"""
import json
import sys
import threading
import time

import oslo_messaging
from oslo_config import cfg

url, flights, payload, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
conf = cfg.CONF
conf([])
transport = oslo_messaging.get_rpc_transport(conf, url=url)


class Echo:
    def echo(self, ctxt, text):
        return text


target = oslo_messaging.Target(topic="bench", server="worker")
server = oslo_messaging.get_rpc_server(transport, target, [Echo()], executor="threading")
conf.set_override("executor_thread_pool_size", max(64, flights))
server.start()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="bench"), timeout=30)
text, times, phase, guard = "x" * payload, [], [0], threading.Lock()


def lane():
    mine = []
    while phase[0] < 2:
        begin = time.perf_counter()
        assert client.call({}, "echo", text=text) == text
        if phase[0] == 1:
            mine.append((time.perf_counter() - begin) * 1e6)
    with guard:
        times.extend(mine)


lanes = [threading.Thread(target=lane) for _ in range(flights)]
for one in lanes:
    one.start()
time.sleep(1.5)
phase[0] = 1
begin = time.perf_counter()
time.sleep(seconds)
phase[0] = 2
elapsed = time.perf_counter() - begin
for one in lanes:
    one.join()
print(json.dumps({"seconds": elapsed, "micros": times}), flush=True)
server.stop()
server.wait()
transport.cleanup()
