-- Move waiting messages to another queue: none is lost or doubled whatever happens to the caller.
-- KEYS: list to take from, list to put to. ARGV: name of the new queue, most messages to move,
-- bytes after which no more are moved.
-- Returns how many were moved.
--
-- Consumers take from the right, so the oldest message goes first and lands behind what waits
-- there.
local moved, budget = 0, tonumber(ARGV[3])
while moved < tonumber(ARGV[2]) and (moved == 0 or budget > 0) do
  local message = redis.call('LINDEX', KEYS[1], -1)
  if not message then
    break
  end
  redis.call('LPUSH', KEYS[2], redirected(message, ARGV[1]))
  redis.call('RPOP', KEYS[1])
  budget = budget - #message
  moved = moved + 1
end
return moved
