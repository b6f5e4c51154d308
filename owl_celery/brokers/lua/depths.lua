-- Count what waits in many queues in one round trip.
-- KEYS: the lists of the first queue, those of the second, ... ARGV: lists of each queue.
-- Returns one sum a queue.
local steps, sums = tonumber(ARGV[1]), {}
for first = 1, #KEYS, steps do
  local sum = 0
  for i = first, first + steps - 1 do
    sum = sum + redis.call('LLEN', KEYS[i])
  end
  sums[#sums + 1] = sum
end
return sums
