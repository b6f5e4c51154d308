-- Sum up the predictions in the messages that wait in a queue, the oldest first.
-- KEYS: its lists. ARGV: the queue, most messages and most bytes to read.
-- Returns how many were read, how many of them were predicted for this queue, and their seconds.
local queue, most, budget = '"q": "' .. ARGV[1] .. '"', tonumber(ARGV[2]), tonumber(ARGV[3])
local MAX_SECONDS = 1e9
local read, predicted, seconds = 0, 0, 0

for _, list in ipairs(KEYS) do
  for position = 1, redis.call('LLEN', list) do
    if read >= most or budget <= 0 then
      break
    end
    -- One by one: LRANGE would copy all of them, however large they are.
    local message = redis.call('LINDEX', list, -position)
    read, budget = read + 1, budget - #message
    local start = message:find('"owl": {', 1, true)
    local header = start and message:match('{[^}]*}', start)
    if header and header:find(queue, 1, true) then
      local value = tonumber(header:match('"s": ([%d.e+-]+)'))
      if value and value >= 0 and value < MAX_SECONDS then
        predicted, seconds = predicted + 1, seconds + value
      end
    end
  end
end
-- As text: numbers lose their fractions.
return {read, predicted, string.format('%.17g', seconds)}
